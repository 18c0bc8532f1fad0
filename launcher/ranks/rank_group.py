"""Sends the rank group steps, hears what comes of them, and finds out when a rank is lost.

Whatever goes wrong ends the whole group, with one error: that of the rank which failed first. Its peers' complaints
about lost connections are consequences, and are not shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Protocol

import zmq
import zmq.asyncio

import engine
from engine.errors import Krea2Error, LaunchError, RankError, error_from_code
from engine.pictures.pixels import Pixels
from engine.scheduling.cost import Work
from engine.step import Step
from launcher.logs import log_event
from launcher.messages import rank_messages as messages
from launcher.messages.configs import FrontendConfig
from launcher.messages.connections.sockets import send_now
from launcher.messages.encoding import describe, encode
from launcher.processes import Child
from launcher.ranks.gpu_health import Gpu, GpuError
from launcher.ranks.lifelines import hold_lifelines
from launcher.ranks.loading import GroupLoading
from launcher.ranks.outstanding import Outstanding
from launcher.ranks.remote_ranks import RemoteRanks

STEPS_AHEAD = 2  # one runs while the next waits in the rank
_CLOCK_S = 0.25
_ROOT_CAUSE_S = 0.5  # for the death behind a peer's complaint to be noticed


JobReport = messages.Decoded | messages.Previewed | messages.JobFailed


class RankEvents(Protocol):
    """What becomes of the ranks, and of the steps and jobs that they are given.

    A rank group and its supervisor tell the dispatcher, which tells the front-end.
    """

    def ranks_loading(self) -> None:
        """Hear that ranks have read more of their weights."""

    def ranks_ready(self) -> None:
        """Hear that all ranks have their weights."""

    def step_sent(self, step: Step) -> None:
        """Hear that a step is sent to all ranks now."""

    def step_done(self, done: messages.DoneStep) -> None:
        """Hear that all ranks have executed a step."""

    def job_reported(self, report: JobReport, rgb: bytes) -> None:
        """Hear that an image or a preview has come, of height · width · 3 bytes, or that no image will; ranks go on."""

    def ranks_lost(self, error: Krea2Error) -> bool:
        """Hear that the ranks are gone with all they held. Returns whether a request or a LoRA is known to be why."""

    def ranks_given_up(self, error: Krea2Error) -> None:
        """Hear that ranks are lost again and again: nothing may wait for the next ones."""

    def gpu_failed(self, error: GpuError) -> None:
        """Hear of an error of a GPU that ranks use, of which these may know nothing."""

    def gpu_quarantined(self, gpu: Gpu, reason: str) -> None:
        """Hear that a GPU is not used any more."""


class RankGroup:
    """Stands for all ranks, from their start to the loss of the first of them.

    ready_by_rank: what each rank said when it was ready. loading: how much they have read. images: how many have come.
    failed: why the group is lost. The others of its 14 attributes are who hears of it, the sockets, and what runs on
    them.
    """

    def __init__(
        self,
        config: FrontendConfig,
        context: zmq.asyncio.Context,
        events: RankEvents,
        *,
        generation: int,
        on_ready: Callable[[messages.Ready], None],
    ) -> None:
        """on_ready: gets what each rank says when it is ready. Raises `LaunchError` if it cannot listen."""
        self._config, self._events, self._on_ready = config, events, on_ready
        self._ranks = range(config.engine.ranks)
        self.ready_by_rank: dict[int, messages.Ready] = {}
        self.loading = GroupLoading(len(self._ranks))
        self._loop = asyncio.get_running_loop()
        timeouts = config.start_timeout_s, config.step_timeout_s
        self.outstanding = Outstanding(self._ranks, *timeouts, now=self._loop.time())
        self.images = 0
        self.failed: asyncio.Future[Krea2Error] = self._loop.create_future()
        self._failing: set[int] = set()  # ranks that have said why they fail
        self._socket = _listen(context, messages.ranks_address(config.run_folder, generation))
        self._remote: RemoteRanks | None = None
        if config.ranks_host is not None:
            self._remote = RemoteRanks(
                self._socket,
                context,
                host=config.ranks_host,
                run_folder=config.run_folder,
                ranks=config.engine.ranks,
            )
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch_clock())]
        if config.external_ranks:
            lifelines = hold_lifelines(messages.lifeline_path(config.run_folder), self._lost)
            self._tasks.append(asyncio.create_task(lifelines))

    def watch(self, children: Sequence[Child]) -> None:
        """Lose the group when one of its processes ends."""
        for rank, child in enumerate(children):
            child.on_exit(partial(self._exited, rank, child))

    @property
    def came_up(self) -> bool:
        """Whether all ranks have been ready."""
        return len(self.ready_by_rank) == len(self._ranks)

    @property
    def all_ready(self) -> list[messages.Ready]:
        """What all that are ready said, rank by rank."""
        return [self.ready_by_rank[rank] for rank in sorted(self.ready_by_rank)]

    @property
    def ready(self) -> bool:
        """Whether all ranks take steps."""
        return self.came_up and not self.failed.done()

    def send(
        self, step: Step, work: Work, *, expected_s: float | None = None, pixels: Mapping[int, Pixels] | None = None
    ) -> None:
        """Send a step to every rank, and to rank 0 the pixels of the pictures that it encodes, by id. It counts as
        hanging when it takes many times longer than expected."""
        assert self.outstanding.steps < STEPS_AHEAD
        now = self._loop.time()
        self.outstanding.add(step, work, expected_s=expected_s, now=now, sent=time.monotonic())
        self._events.step_sent(step)  # by whose clock no rank has begun before
        frames = messages.pixel_frames(step, pixels or {})
        for rank in self._ranks:
            self._command(rank, messages.Execute(step=step), *(frames if rank == 0 else ()))

    def close(self) -> None:
        """Stop listening. Ranks that somebody else started end now; the others are their starter's to stop."""
        for task in self._tasks:
            task.cancel()
        if self._remote is not None:
            self._remote.close(done=not self.failed.done())
        self.failed.cancel()  # nobody is to hear that its ranks end
        self._socket.close()
        if self._remote is not None:
            self._remote.end()

    def _command(self, rank: int, command: messages.Command, *frames: bytes) -> None:
        if not send_now(self._socket, [messages.route(rank), encode(command), *frames]):
            # its connection broke: the reason, its death, is noticed soon
            self._fail_later(RankError(f"rank {rank} cannot be reached"))

    # ---- hearing

    async def _receive(self) -> None:
        try:
            while True:
                _, header, *frames = await self._socket.recv_multipart()
                self._handle(header, frames)
                await asyncio.sleep(0)  # what has arrived already is received without yielding to other tasks
        except Exception as error:
            self.fail(RankError(f"a rank sent what cannot be handled: {describe(error)}"))
            raise

    def _handle(self, header: bytes, frames: list[bytes]) -> None:
        match messages.decode_report(header):
            case messages.Hello(rank=rank, version=version) if version != engine.__version__:
                self._failing.add(rank)
                ours = f"krea2-engine {engine.__version__}, as the front-end"
                self.fail(LaunchError(f"rank {rank} must be of {ours}, and is of {version}"))
            case messages.Alive(rank=rank):
                if self._remote is not None:
                    self._remote.came(rank)
            case messages.Hello(rank=rank):
                config = self._config
                load = messages.Load(
                    engine=config.engine,
                    warm_up=config.warm_up,
                    warm_up_sizes=config.warm_up_sizes,
                    timeout_s=max(config.start_timeout_s, config.step_timeout_s),
                )
                self._command(rank, load)
            case messages.Loading() as loading:
                self.loading.note(loading)
                self._events.ranks_loading()
            case messages.Ready() as ready:
                self.ready_by_rank[ready.rank] = ready
                self._on_ready(ready)
                if self.ready:
                    self._events.ranks_ready()
            case messages.StepDone(rank=rank, number=number, times=times):
                now = self._loop.time()
                if (done := self.outstanding.answer(rank, number, times, now, time.monotonic())) is not None:
                    self._events.step_done(done)
            case messages.Decoded() | messages.Previewed() | messages.JobFailed() as report:
                if not isinstance(report, messages.Previewed):
                    self.outstanding.image_came(report.job_id)
                self.images += isinstance(report, messages.Decoded)
                self._events.job_reported(report, frames[0] if frames else b"")
            case messages.PlanBuilt(rank=rank, plan=plan):
                level = "info" if plan.error is None else "warning"
                log_event("attention plan", level=level, rank=rank, **asdict(plan))
            case messages.RankFailed(rank=rank) as failure:
                self._failing.add(rank)
                error: Krea2Error = RankError(failure.message)
                if failure.code != Krea2Error.code:
                    error = error_from_code(failure.code, failure.message, failure.parameter)
                # of a rank that could not talk to another, the other may have the reason
                if failure.code in (Krea2Error.code, LaunchError.code) and len(self._ranks) > 1:
                    self._fail_later(error)
                else:
                    self.fail(error)

    # ---- losing a rank

    def fail(self, error: Krea2Error) -> None:
        """Lose the group, for the first reason that is given."""
        if not self.failed.done():
            self.failed.set_result(error)

    def _fail_later(self, error: Krea2Error) -> None:
        """Lose the group for this reason unless the one behind it is noticed first."""
        self._loop.call_later(_ROOT_CAUSE_S, self.fail, error)

    def _exited(self, rank: int, child: Child) -> None:
        """Lose the group, from another thread."""
        with suppress(RuntimeError):  # the loop has ended, so has the group
            self._loop.call_soon_threadsafe(self._lost, rank, child.describe_exit())

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_S)
            for rank in self._remote.lost() if self._remote is not None else []:
                self._lost(rank, "died, or its machine cannot be reached")
            missing = [rank for rank in self._ranks if rank not in self.ready_by_rank]
            if (overdue := self.outstanding.overdue(self._loop.time(), missing=missing)) is not None:
                self.fail(overdue)

    def _lost(self, rank: int, how: str = "died") -> None:
        if rank not in self._failing:  # whose reason is heard over the wire
            self.fail(RankError(f"rank {rank} {how}"))


def _listen(context: zmq.asyncio.Context, address: str) -> zmq.asyncio.Socket:
    """Listen for ranks of this machine. Raises `LaunchError` if that fails, as on a full disk."""
    server = None
    try:
        server = context.socket(zmq.ROUTER)
        server.set(zmq.ROUTER_MANDATORY, 1)
        server.set(zmq.LINGER, 0)
        server.bind(address)
    except zmq.ZMQError as error:
        if server is not None:
            server.close()
        raise LaunchError(f"cannot listen on {address} for ranks: {zmq.strerror(error.errno or 0)}") from None
    return server
