"""The front-end: owns every request from its arrival until its client has the images.

A request is checked and tokenised and becomes one job for each image; the scheduler makes steps of the jobs, and
every rank gets them one tick ahead. Answers go to the client that asked. Imports no torch.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq.asyncio

from engine.config import ModelConfig
from engine.cost import Work
from engine.errors import ArgumentError, CancelledError, Krea2Error, QueueFullError, RequestTimeoutError, ServerError
from engine.scheduler import Scheduler
from engine.step import Step, StepTimes
from launcher.clients import Clients
from launcher.images import encode_image
from launcher.internal import Decoded, FrontendConfig
from launcher.process import Child
from launcher.protocol import (
    Accepted,
    Acknowledge,
    Cancel,
    Generate,
    Image,
    Progress,
    Request,
    Status,
    StatusReply,
    describe,
)
from launcher.ranks import STEPS_AHEAD, RankGroup
from launcher.requests import CheckedRequest, Plan, check, check_memory, make_plan, token_budget
from launcher.tokenizer import PromptTokenizer

TOKEN_BUDGET = 8192  # of a tick, which two images of 1024² fill
ATTEMPT = 1  # ranks that died end the front-end, so every request is in its first
_CLOCK_S = 1.0
_TIMINGS = ("queue", "encode_text", "denoise", "decode", "file", "total")  # seconds


async def serve(
    config: FrontendConfig, ranks: Sequence[Child], *, on_started: Callable[[str], None], stop: asyncio.Event
) -> None:
    """Serve until `stop` is set. `on_started` gets the clients' address once the ranks are ready.

    Raises the error of a rank that failed, `CheckpointError` for a bad tokenizer or config, and `LaunchError` if the
    address cannot be used. Every client has been told by then.
    """
    folder = config.engine.checkpoint_folder()
    model = ModelConfig.from_folder(folder, config.engine.variant)
    tokenizer = PromptTokenizer(folder, model.text_encoder.vocab_size)
    context = zmq.asyncio.Context()
    try:
        frontend = Frontend(config, model, tokenizer, ranks, context, on_started)
        await frontend.run(stop)
    finally:
        context.destroy()


@dataclass(eq=False)
class _Request:
    client: bytes
    request_id: str
    checked: CheckedRequest
    plan: Plan
    arrived: float
    started: bool = False
    ended: bool = False
    steps_done: int = 0
    timings: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_TIMINGS, 0.0))
    timer: asyncio.TimerHandle | None = None
    answers: list[list[bytes]] = field(default_factory=list)  # images or failure, kept until they are acknowledged


class Frontend:
    """The state of a front-end: its requests, and their jobs in the scheduler."""

    def __init__(
        self,
        config: FrontendConfig,
        model: ModelConfig,
        tokenizer: PromptTokenizer,
        ranks: Sequence[Child],
        context: zmq.asyncio.Context,
        on_started: Callable[[str], None],
    ) -> None:
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._on_started = on_started
        self._scheduler = Scheduler(TOKEN_BUDGET)
        self._requests: dict[tuple[bytes, str], _Request] = {}  # by client and id, until acknowledged
        self._jobs: dict[int, _Request] = {}  # of requests that have not ended
        self._job_ids = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = time.monotonic()
        self._done = self._failed = 0
        address = config.rpc or f"ipc://{config.run_folder}/clients"
        self._clients = Clients(address, context, on_message=self._handle)
        self._ranks = RankGroup(
            config, ranks, context, on_ready=self._ranks_ready, on_step=self._step_done, on_image=self._image_decoded
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set or a rank fails, whose error is raised after all clients have been told."""
        serving = [self._spawn(self._clients.receive()), self._spawn(self._watch_clock())]
        stopped = asyncio.create_task(stop.wait())
        ends: list[asyncio.Future[Any]] = [stopped, self._ranks.failed, *serving]
        reason: Krea2Error = ServerError("the server was stopped")
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._ranks.failed.done():
                raise self._ranks.failed.result()
            for task in serving:
                if task.done():  # by a mistake of ours
                    task.result()
        except Exception as error:
            reason = error if isinstance(error, Krea2Error) else Krea2Error(f"front-end: {describe(error)}")
            raise
        finally:
            for request in list(self._requests.values()):
                self._fail(request, reason)
            self._clients.close(reason)
            self._ranks.close()
            stopped.cancel()
            for task in self._tasks:
                task.cancel()

    # ---- requests

    def _handle(self, client: bytes, message: Request) -> None:
        match message:
            case Generate(request_id=request_id):
                try:
                    self._generate(client, message)
                except Krea2Error as error:
                    self._clients.send_failure(client, request_id, error)
            case Cancel(request_id=request_id):
                if (request := self._requests.get((client, request_id))) is not None:
                    self._fail(request, CancelledError("the request was cancelled"))
            case Acknowledge(request_id=request_id):
                if (request := self._requests.get((client, request_id))) is not None and request.ended:
                    del self._requests[client, request_id]
            case Status():
                self._clients.send(client, self._status())

    def _generate(self, client: bytes, message: Generate) -> None:
        known = self._requests.get((client, message.request_id))
        if known is not None:
            for frames in known.answers:
                self._clients.send_again(client, frames)
            if not known.ended:
                self._accepted(known)
            return
        checked = check(message, self._model, self._config.limits, drawn_seed=secrets.randbelow(2**32))
        waiting = sum(not request.ended for request in self._requests.values())
        kept = sum(request.ended and request.client == client for request in self._requests.values())
        if max(waiting, kept) >= self._config.limits.max_queue:
            wait = self._scheduler.backlog_s(time.monotonic())
            later = "later" if wait is None else f"in about {wait:.0f} s"
            raise QueueFullError(f"the queue is full with {max(waiting, kept)} requests: try again {later}")
        plan = make_plan(checked, self._model, self._tokenizer.encode, self._job_ids)
        request = _Request(client, message.request_id, checked, plan, arrived=time.monotonic())
        self._check_memory(request)
        self._requests[client, message.request_id] = request
        for job in plan.jobs:
            self._jobs[job.job_id] = request
            self._scheduler.add(
                job,
                segments=plan.segments,
                request=plan.jobs[0].job_id,
                priority=checked.priority,
                now=request.arrived,
            )
        if checked.timeout_s is not None:
            error = RequestTimeoutError(f"the request was not done within its timeout_s of {checked.timeout_s:g}")
            request.timer = asyncio.get_running_loop().call_later(checked.timeout_s, self._fail, request, error)
        self._accepted(request)
        self._send_steps()

    def _check_memory(self, request: _Request) -> None:
        if self._ranks.free is not None:
            check_memory(
                request.plan,
                request.checked,
                self._model,
                bytes_per_element=self._bytes_per_element(),
                free=self._ranks.free,
            )

    def _bytes_per_element(self) -> int:
        device_type = (self._ranks.device or "").split(":")[0]
        return 2 if self._config.engine.dtype_on(device_type) == "bfloat16" else 4

    def _accepted(self, request: _Request) -> None:
        estimate = self._scheduler.estimate(request.plan.jobs[0].job_id, time.monotonic())
        accepted = Accepted(
            request_id=request.request_id,
            position=0 if estimate is None else estimate.position,
            estimated_s=None if estimate is None else estimate.seconds,
            attempt=ATTEMPT,
        )
        self._clients.send(request.client, accepted)

    def _fail(self, request: _Request, error: Krea2Error) -> None:
        if not request.ended:
            self._failed += 1
            request.answers = [self._clients.send_failure(request.client, request.request_id, error)]
            self._end(request)
            self._send_steps()  # which tell the ranks to forget its jobs

    def _end(self, request: _Request) -> None:
        request.ended = True
        if request.timer is not None:
            request.timer.cancel()
        for job in request.plan.jobs:
            self._jobs.pop(job.job_id, None)
            self._scheduler.cancel(job.job_id)

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_S)
            gone = set(self._clients.end_leases(self._config.lease_s))
            for (client, request_id), request in list(self._requests.items()):
                if client in gone:
                    self._fail(request, CancelledError("the client is gone"))
                    del self._requests[client, request_id]
            if self._ranks.decoding and not self._ranks.outstanding:
                # A rank whose decoder failed says so at the next step; without other work it would never come.
                self._ranks.send(self._scheduler.empty_step())

    def _status(self) -> StatusReply:
        requests = set(self._jobs.values())
        running = sum(request.started for request in requests)
        return StatusReply(
            model=self._config.engine.model,
            tp=self._config.engine.tp,
            device=self._ranks.device,
            ready=self._ranks.ready,
            uptime_s=time.monotonic() - self._began,
            waiting=len(requests) - running,
            running=running,
            done=self._done,
            failed=self._failed,
            dropped_messages=self._clients.dropped_messages,
            restarts=0,
            rank_memory=self._ranks.memory,
        )

    # ---- steps and images

    def _ranks_ready(self) -> None:
        self._on_started(self._clients.address)
        if self._ranks.free is not None:
            self._scheduler.token_budget = token_budget(
                self._model, TOKEN_BUDGET, bytes_per_element=self._bytes_per_element(), free=self._ranks.free
            )
        for request in dict.fromkeys(self._jobs.values()):  # which came before the ranks' memory was known
            try:
                self._check_memory(request)
            except ArgumentError as error:
                self._fail(request, error)
        self._send_steps()

    def _send_steps(self) -> None:
        while self._ranks.ready and self._ranks.outstanding < STEPS_AHEAD:
            idle = not (self._ranks.outstanding or self._ranks.decoding)
            step = self._scheduler.next_step(time.monotonic(), idle=idle)
            if step is None:
                return
            for job in step.start:
                request = self._jobs[job.job_id]
                if not request.started:
                    request.started = True
                    request.timings["queue"] = time.monotonic() - request.arrived
            self._ranks.send(step)

    def _step_done(self, step: Step, times: StepTimes, seconds: float) -> None:
        self._send_steps()
        requests = [self._jobs[job_id] for job_id in step.denoise if job_id in self._jobs]
        started = {self._jobs[job.job_id] for job in step.start if job.job_id in self._jobs}
        if requests:
            work = Work.of(length for request in requests for length in request.plan.segments)
            self._scheduler.costs.correct(work, times.denoise_s)
        for request in requests:
            request.steps_done += 1
        for request in dict.fromkeys(requests):
            request.timings["denoise"] += times.denoise_s
            if request in started:
                request.timings["encode_text"] += times.encode_s
            progress = Progress(
                request_id=request.request_id,
                step=request.steps_done,
                steps=request.checked.steps * request.checked.num_images,
                estimated_s=None,
                attempt=ATTEMPT,
            )
            self._clients.send(request.client, progress)

    def _image_decoded(self, decoded: Decoded, rgb: bytes) -> None:
        self._scheduler.decoded(decoded.job_id)
        self._send_steps()
        request = self._jobs.get(decoded.job_id)
        if request is not None:
            self._spawn(self._send_image(request, decoded, rgb))

    async def _send_image(self, request: _Request, decoded: Decoded, rgb: bytes) -> None:
        job = next(job for job in request.plan.jobs if job.job_id == decoded.job_id)
        began = time.monotonic()
        try:
            file = await asyncio.to_thread(encode_image, rgb, request.checked, seed=job.seed)
        except Exception as error:
            traceback.print_exception(error)
            self._fail(request, Krea2Error(f"the image could not be written as a file: {describe(error)}"))
        if request.ended:  # cancelled, or failed, meanwhile
            return
        now = time.monotonic()
        request.timings["decode"] += decoded.decode_s
        request.timings["file"] += now - began
        request.timings["total"] = now - request.arrived
        image = Image(
            request_id=request.request_id,
            index=request.plan.jobs.index(job),
            num_images=request.checked.num_images,
            seed=job.seed,
            width=job.width,
            height=job.height,
            output_format=request.checked.output_format,
            warnings=request.plan.warnings,
            timings=request.timings,
            attempt=ATTEMPT,
        )
        request.answers.append(self._clients.send(request.client, image, file))
        if len(request.answers) == request.checked.num_images:
            self._done += 1
            self._end(request)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
