"""Ranks that compute nothing, in the test's own event loop, and a front-end that takes them for real ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import zmq
import zmq.asyncio

from engine.config.engine_config import EngineConfig
from engine.errors import Krea2Error
from engine.pictures.pixels import Pixels
from engine.step import Job, Step, StepTimes
from launcher import awake
from launcher.client.async_client import AsyncClient
from launcher.filters.checks import Checks
from launcher.frontend.delivery.metrics import FilterMetrics
from launcher.frontend.frontend import Frontend
from launcher.frontend.warm_up import AfterWarmUp
from launcher.messages.configs import FrontendConfig
from launcher.messages.encoding import encode
from launcher.messages.limits import Limits
from launcher.messages.message_parts import Stage
from launcher.messages.own_clients import OwnClients
from launcher.messages.rank_messages import (
    Decoded,
    Execute,
    Hello,
    Load,
    Previewed,
    RankFailed,
    Ready,
    Report,
    StepDone,
    decode_command,
    ranks_address,
    read_pixels,
    route,
)
from launcher.processes import Child
from tests.launcher.processes import PATIENCE_S
from tests.launcher.requests.schedule.told_steps import ToldSteps

DEADLINE_S = PATIENCE_S
NOT_FINITE_SEED = 666  # of an image whose latents are not numbers
MakeRank = Callable[..., "FakeRank"]


class FakeRank:
    """Answers every step at once, or, while `hold` is set, when `release` says so. With `hold_after_preview`, it holds
    what follows a preview until `resume`."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        run_folder: Path,
        rank: int,
        answer: bool = True,
        memory: dict[str, int] | None = None,
        generation: int = 0,
    ) -> None:
        self.rank = rank
        self._memory = memory or {"weights": 1}
        self.steps: list[Step] = []
        self.pixels: list[dict[int, Pixels]] = []  # that came with each
        self.hold = self.hold_after_preview = False
        self.decodes = True
        self.one_by_one = False
        self.encode_s, self.denoise_s, self.decode_s = 0.5, 0.25, 0.125  # what it says that it took, at once
        self.picture_s = 0.0625
        self._jobs: dict[int, Job] = {}
        self._steps_of: Counter[int] = Counter()
        self._told = ToldSteps()
        self._answered = 0
        self._arrived = asyncio.Condition()
        self._socket = context.socket(zmq.DEALER)
        self._socket.routing_id = route(rank)
        self._socket.connect(ranks_address(str(run_folder), generation))
        self._task = asyncio.create_task(self._run())
        if answer:
            self.send(Hello(rank=rank))

    def send(self, message: Report, *frames: bytes) -> None:
        self._socket.send_multipart([encode(message), *frames])

    def ready(self) -> Ready:
        return Ready(rank=self.rank, device="fake", memory=self._memory, attention={})

    def load(self) -> None:
        """Hear that it is to load, and be ready."""
        self.send(self.ready())

    def end(self) -> None:
        self._task.cancel()

    def fail(self, code: str, message: str, parameter: str | None = None) -> None:
        self.send(RankFailed(rank=self.rank, code=code, message=message, parameter=parameter))

    async def has_steps(self, count: int) -> list[Step]:
        """Wait for that many steps to have arrived since the beginning."""
        async with asyncio.timeout(DEADLINE_S), self._arrived:
            await self._arrived.wait_for(lambda: len(self.steps) >= count)
        return self.steps

    def release(self, count: int = 1) -> None:
        """Answer the next steps that have not been answered."""
        for step in self.steps[self._answered : self._answered + count]:
            self._answer(step)

    def resume(self) -> None:
        """Answer what has been held, and hold no more, until the next preview if that is asked for."""
        self.hold = False
        while self._answered < len(self.steps) and not self.hold:
            self.release()

    async def _run(self) -> None:
        while True:
            header, *frames = await self._socket.recv_multipart()
            command = decode_command(header)
            if isinstance(command, Load):
                self.load()
            elif isinstance(command, Execute):
                async with self._arrived:
                    self.steps.append(command.step)
                    self.pixels.append(read_pixels(command.step, frames))
                    self._arrived.notify_all()
                if not self.hold:
                    self._answer(command.step)

    def _preview(self, step: Step) -> None:
        for job_id in step.denoise:
            job, done = self._jobs[job_id], self._steps_of[job_id] + 1
            self._steps_of[job_id] = done
            if self.rank == 0 and job.preview_every and done % job.preview_every == 0 and done < job.steps:
                self.send(Previewed(rank=0, job_id=job_id, step=done, width=4, height=2), bytes([done, 0, 0]) * 8)
                self.hold = self.hold_after_preview

    def _answer(self, step: Step) -> None:
        self._answered += 1
        self._jobs |= {job.job_id: job for job in step.start}
        encode_s = self.encode_s if step.start else 0.0
        times = StepTimes(
            encode_s=encode_s,
            denoise_s=self.denoise_s,
            one_by_one=self.one_by_one,
            picture_s=self.picture_s if step.encode else 0.0,
            encoded_pixels=sum(picture.pixels for picture in step.encode),
            blocks_run=self._told.blocks_run(step),
        )
        self.send(StepDone(rank=self.rank, number=step.number, times=times))
        self._preview(step)
        if self.rank == 0 and self.decodes:
            for job_id in step.decode:
                self.send_image(self._jobs[job_id])

    def send_image(self, job: Job) -> None:
        pixel = bytes([job.seed % 256, job.job_id % 256, 7])
        header = Decoded(
            rank=0,
            job_id=job.job_id,
            width=job.width,
            height=job.height,
            decode_s=self.decode_s,
            finite=job.seed != NOT_FINITE_SEED,
        )
        self.send(header, pixel * (job.width * job.height))


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine, in bounded time."""

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # A test may leave calls behind whose error is not its subject. Told of when they are collected, with a
        # traceback, they could break whatever the garbage collector interrupted (python/cpython#106905).
        if not isinstance(context.get("exception"), Krea2Error):
            loop.default_exception_handler(context)

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(report)
        async with asyncio.timeout(2 * DEADLINE_S):  # so that what it waits for in vain says so first
            await test

    awake.run(bounded())


class Fakes:
    """A front-end, its fake ranks and clients, in one event loop."""

    def __init__(self, context: zmq.asyncio.Context, run_folder: Path, tp: int, make_rank: MakeRank) -> None:
        self.context, self._run_folder, self._tp, self._make_rank = context, run_folder, tp, make_rank
        self.address = ""
        self.ranks: list[FakeRank] = []  # of the newest generation
        self.variables: Mapping[str, str] = {}  # of their environment
        self.generation = 0
        self.stop, self.stop_now = asyncio.Event(), asyncio.Event()
        self.served: asyncio.Task[None]
        self.frontend: Frontend

    def start_ranks(self, generation: int = 0) -> None:
        for rank in self.ranks:
            rank.end()
        self.generation = generation
        self.ranks = [
            self._make_rank(self.context, self._run_folder, rank, generation=generation) for rank in range(self._tp)
        ]

    async def has_generation(self, generation: int) -> None:
        """Wait until `generation` groups of ranks have been replaced."""
        async with asyncio.timeout(DEADLINE_S):
            while self.generation < generation:
                await asyncio.sleep(0.01)

    async def client(self) -> AsyncClient:
        client = AsyncClient(self.address)
        await client.connect()
        return client

    def raw(self) -> zmq.asyncio.Socket:
        socket = self.context.socket(zmq.DEALER)
        socket.connect(self.address)
        return socket


@asynccontextmanager
async def fake_engine(
    run_folder: Path,
    *,
    tp: int = 1,
    engine: EngineConfig | None = None,
    limits: Limits | None = None,
    make_rank: MakeRank = FakeRank,
    replace_ranks: bool = False,
    warm_up: bool = False,
    children: list[Child] | None = None,
    after_warm_up: AfterWarmUp | None = None,
    own_clients: OwnClients | None = None,
    make_gate: Callable[[FilterMetrics], Checks] | None = None,
    on_stage: Callable[[Stage], None] = lambda stage: None,
    wait: bool = True,
    **config: float | str,
) -> AsyncIterator[Fakes]:
    """A front-end for the demo checkpoint with `tp` fake ranks, or for an `engine`. Leaving it stops what still runs.

    replace_ranks: groups that are lost are replaced by new fakes; otherwise their error ends the front-end. children:
    what stands for the processes of the first ranks. wait: until the ranks are ready.
    """
    settings = FrontendConfig(
        engine=engine or EngineConfig(tp=tp),
        run_folder=str(run_folder),
        limits=limits or Limits(),
        external_ranks=not replace_ranks,
        warm_up=warm_up,
        **config,  # type: ignore[arg-type]
    )
    context = zmq.asyncio.Context()
    fakes = Fakes(context, run_folder, settings.engine.ranks, make_rank)
    loop = asyncio.get_running_loop()
    started: asyncio.Future[str] = loop.create_future()

    def from_a_thread(
        _config: FrontendConfig, _children: list[Child], generation: int, variables: Mapping[str, str]
    ) -> None:
        fakes.variables = variables
        loop.call_soon_threadsafe(fakes.start_ranks, generation)

    children = [] if children is None else children
    with patch("launcher.ranks.supervisor.start_ranks", from_a_thread):
        fakes.frontend = Frontend(
            settings, children, on_started=lambda address, _: started.set_result(address), on_stage=on_stage,
            after_warm_up=after_warm_up, own_clients=own_clients, make_gate=make_gate,
        )  # fmt: skip
        fakes.served = asyncio.create_task(fakes.frontend.run(fakes.stop, fakes.stop_now))
        fakes.start_ranks()
        try:
            if wait:
                async with asyncio.timeout(DEADLINE_S):
                    await asyncio.wait((fakes.served, started), return_when=asyncio.FIRST_COMPLETED)
                if fakes.served.done():
                    await fakes.served
            fakes.address = started.result() if wait else f"ipc://{run_folder}/clients"
            yield fakes
        finally:
            fakes.stop_now.set()
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.wait((fakes.served,))
            for rank in fakes.ranks:
                rank.end()
            context.destroy(linger=0)
