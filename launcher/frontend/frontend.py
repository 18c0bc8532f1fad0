"""The front-end: owns every request from its arrival until its client has the images.

A request is checked and tokenised and becomes one job for each image, which the dispatcher turns into steps for the
ranks. Answers go to the client that asked. When ranks die, the requests that they had run again. Imports no torch.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import Any

import zmq.asyncio

import engine
from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.model_config import ModelConfig
from engine.errors import (
    ArgumentError,
    CancelledError,
    Krea2Error,
    NotFiniteError,
    QueueFullError,
    RequestKilledRanksError,
    RequestTimeoutError,
    ServerError,
)
from engine.step import Job, Step, StepTimes
from launcher.frontend.clients import Clients
from launcher.frontend.dispatcher import Dispatcher
from launcher.frontend.lora_registry import LoraRegistry
from launcher.frontend.lora_service import LoraService, open_registry
from launcher.frontend.metrics import Metrics
from launcher.frontend.replies import Answers, TrackedRequest
from launcher.frontend.status import Overview
from launcher.frontend.warm_up import AfterWarmUp
from launcher.logs import log_event
from launcher.messages.client_messages import (
    Acknowledge,
    Cancel,
    Generate,
    ListLoras,
    LoadLora,
    MetricsReply,
    Request,
    Status,
    UnloadLora,
)
from launcher.messages.client_messages import Metrics as AskMetrics
from launcher.messages.configs import FrontendConfig
from launcher.messages.encoding import describe
from launcher.messages.keys import ServerKeys
from launcher.messages.rank_messages import Decoded, Previewed
from launcher.processes import Child
from launcher.requests.check import check
from launcher.requests.image_files import encode_image, encode_preview
from launcher.requests.plan import make_plan
from launcher.requests.rank_memory import check_memory
from launcher.requests.tokenizer import PromptTokenizer

_CLOCK_S = 1.0
_MOST_KEPT_BYTES = 512 * 2**20  # of images that a client has not acknowledged
_DEATHS_ALONE, _DEATHS_FATAL = 2, 3  # of ranks while a request was in flight: it runs alone then, and fails


async def serve(
    config: FrontendConfig,
    ranks: list[Child],
    *,
    start_ranks: Callable[[int], None],
    on_started: Callable[[str], None],
    stop: asyncio.Event,
    stop_now: asyncio.Event,
    after_warm_up: AfterWarmUp | None = None,
) -> None:
    """Serve until `stop` is set and what runs has been drained, or `stop_now` is set.

    ranks: the processes of the first rank group; `start_ranks(generation)` appends those of a later one. `on_started`
    gets the clients' address once the ranks are ready, `after_warm_up` what they were found to take for steps. Raises
    the error of ranks that cannot be replaced, `CheckpointError` for a bad tokenizer or config, `LoraError` for a bad
    LoRA, and `LaunchError` if the address cannot be used. Every client has been told by then.
    """
    checkpoint = CheckpointFiles.open(config.engine)
    checkpoint.close()
    model = checkpoint.config
    tokenizer = PromptTokenizer(checkpoint.tokenizer, model.text_encoder.vocab_size)
    loras = open_registry(config, model)
    log_event("starting", version=engine.__version__, pid=os.getpid(), **asdict(config.engine))
    contexts = clients_context, ranks_context = zmq.asyncio.Context(), zmq.asyncio.Context()
    try:
        frontend = Frontend(
            config,
            model,
            tokenizer,
            loras,
            ranks,
            start_ranks,
            clients_context,
            ranks_context,
            on_started,
            after_warm_up,
        )
        await frontend.run(stop, stop_now)
    finally:
        for context in contexts:
            context.destroy()


class Frontend:
    """The state of a front-end: its requests, and whose jobs the dispatcher has."""

    def __init__(
        self,
        config: FrontendConfig,
        model: ModelConfig,
        tokenizer: PromptTokenizer,
        loras: LoraRegistry,
        ranks: list[Child],
        start_ranks: Callable[[int], None],
        clients_context: zmq.asyncio.Context,
        ranks_context: zmq.asyncio.Context,
        on_started: Callable[[str], None],
        after_warm_up: AfterWarmUp | None,
    ) -> None:
        """Two contexts, since one holds the keys of one socket at most."""
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._was_ready = False
        self._on_started = on_started
        self._metrics = Metrics()
        self._requests: dict[tuple[bytes, str], TrackedRequest] = {}  # by client and id, until acknowledged
        self._jobs: dict[int, tuple[TrackedRequest, Job]] = {}  # of requests that have not ended
        self._job_ids, self._numbers = itertools.count(), itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        address = config.rpc or f"ipc://{config.run_folder}/clients"
        keys = None if config.rpc_keys is None else ServerKeys.load(config.rpc_keys)
        self._clients = Clients(address, clients_context, on_message=self._handle, keys=keys)
        self._answers = Answers(self._clients, self._metrics)
        self._dispatcher = Dispatcher(
            config,
            model,
            tokenizer.encode,
            self._job_ids,
            ranks,
            start_ranks,
            ranks_context,
            events=self,
            after_warm_up=after_warm_up,
        )
        self._loras = LoraService(
            config,
            model,
            loras,
            self._clients,
            self._dispatcher,
            spawn=self._spawn,
            check_free=self._check_free,
            on_lost=self._fail_numbered,
        )
        self._overview = Overview(config, self._dispatcher, self._clients, self._loras, self._metrics)

    async def run(self, stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        """Serve until told to stop, or until ranks are lost for good: then their error is raised.

        All clients have been told when this returns or raises.
        """
        serving = [
            self._spawn(work)
            for work in (
                self._clients.receive(),
                self._clients.send_waiting(),
                self._watch_clock(),
                self._dispatcher.run(),
            )
        ]
        stopping = [self._spawn(self._drain_after(stop)), self._spawn(_wait_for(stop_now))]
        reason: Krea2Error = ServerError("the server was stopped")
        try:
            await asyncio.wait([*serving, *stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in serving:
                if task.done():  # only by raising
                    task.result()
        except Exception as error:
            reason = error if isinstance(error, Krea2Error) else Krea2Error(f"front-end: {describe(error)}")
            raise
        finally:
            for request in list(self._requests.values()):
                self._fail(request, reason)
            self._clients.close(reason)
            self._dispatcher.close()
            for task in self._tasks:
                task.cancel()

    async def _drain_after(self, stop: asyncio.Event) -> None:
        """Refuse what comes and what has not begun, and wait until the rest has been acknowledged, for `drain_s`."""
        await stop.wait()
        self._draining = True
        waiting = [request for request in self._unfinished() if not request.started and not request.deaths]
        for request in waiting:
            self._fail(request, ServerError("the server is being stopped, and the request had not begun"))
        running = len(self._unfinished())
        log_event("draining", running=running, refused=len(waiting), drain_s=self._config.drain_s)
        due = time.monotonic() + self._config.drain_s
        while self._requests and time.monotonic() < due:  # until their clients have what they were owed
            await asyncio.sleep(0.05)

    # ---- requests

    def _handle(self, client: bytes, message: Request) -> None:
        match message:
            case Generate(request_id=request_id):
                try:
                    self._generate(client, message)
                except Krea2Error as error:
                    self._answers.refused(client, request_id, error)
                except Exception as error:  # a mistake of ours, of which the client must hear too
                    traceback.print_exception(error)
                    failure = Krea2Error(f"front-end: {describe(error)}")
                    if (request := self._requests.get((client, request_id))) is not None:
                        self._fail(request, failure)
                    else:
                        self._answers.refused(client, request_id, failure)
            case Cancel(request_id=request_id):
                if (request := self._requests.get((client, request_id))) is not None:
                    self._fail(request, CancelledError("the request was cancelled"))
            case Acknowledge(request_id=request_id):
                if (request := self._requests.get((client, request_id))) is not None and request.ended:
                    del self._requests[client, request_id]
                    self._clients.forget(client, request.number)
            case LoadLora() | UnloadLora() | ListLoras():
                self._loras.handle(client, message)
            case Status():
                self._clients.send(client, self._overview.status(self._unfinished(), draining=self._draining))
            case AskMetrics():
                text = self._overview.render_metrics(self._unfinished(), draining=self._draining)
                self._clients.send(client, MetricsReply(), text)

    def _generate(self, client: bytes, message: Generate) -> None:
        known = self._requests.get((client, message.request_id))
        if known is not None:
            self._answers.again(known)
            if not known.ended:
                self._accepted(known)
            return
        if self._draining:
            raise _stopping()
        if (lost := self._dispatcher.given_up) is not None:
            raise lost.with_traceback(None)  # which each raise would add to
        loras = self._loras.registry
        drawn_seed = secrets.randbelow(2**32)
        loras.check_lost(use.name for use in message.loras)
        checked = check(message, self._model, self._config.limits, drawn_seed=drawn_seed, loras=loras.strengths)
        waiting = sum(not request.started for request in self._unfinished())
        kept = sum(request.ended and request.client == client for request in self._requests.values())
        if max(waiting, kept) >= self._config.limits.max_queue:
            backlog = self._dispatcher.backlog_s()
            wait = None if backlog is None else max(1.0, backlog)
            later = "later" if wait is None else f"in about {wait:.0f} s"
            raise QueueFullError(
                f"the queue is full with {max(waiting, kept)} requests: try again {later}", retry_after_s=wait
            )
        if sum(request.size for request in self._requests.values() if request.client == client) > _MOST_KEPT_BYTES:
            raise QueueFullError("images that this client has not acknowledged fill the memory that it may have")
        plan = make_plan(checked, self._model, self._tokenizer.encode, self._job_ids, loras.ids)
        number = next(self._numbers)
        request = TrackedRequest(number, client, message.request_id, checked, plan, arrived=time.monotonic())
        self._check_memory(request)
        loras.use(number, [name for name, _ in checked.loras])
        self._requests[client, message.request_id] = request
        self._jobs |= {job.job_id: (request, job) for job in plan.jobs}
        for job in plan.jobs:
            self._dispatcher.add(
                job,
                segments=plan.segments,
                request=number,
                priority=checked.priority,
                arrived=request.arrived,
            )
        if checked.timeout_s is not None:
            error = RequestTimeoutError(f"the request was not done within its timeout_s of {checked.timeout_s:g}")
            request.timer = asyncio.get_running_loop().call_later(checked.timeout_s, self._fail, request, error)
        self._accepted(request)
        self._dispatcher.send_steps()

    def _check_memory(self, request: TrackedRequest, free: Sequence[int] | None = None) -> None:
        """Raise `ArgumentError` if a rank has too little memory, now or with so many `free` bytes."""
        free = self._dispatcher.free if free is None else free
        if free is not None:
            check_memory(
                request.plan,
                request.checked,
                self._model,
                self._config.engine,
                bytes_per_element=self._dispatcher.bytes_per_element,
                decode_memory=self._dispatcher.decode_memory,
                free=free,
            )

    def _check_free(self, free: Sequence[int]) -> None:
        for request in self._unfinished():
            self._check_memory(request, free)

    def _accepted(self, request: TrackedRequest) -> None:
        self._answers.accepted(request, self._dispatcher.estimate(request.number))

    def _fail(self, request: TrackedRequest, error: Krea2Error) -> None:
        if not request.ended:
            self._overview.failed += 1
            self._answers.failed(request, error)
            self._forget_jobs(request)
            self._dispatcher.send_steps()  # which tell the ranks to forget its jobs

    def _fail_numbered(self, numbers: set[int], error: Krea2Error) -> None:
        for request in self._unfinished():
            if request.number in numbers:
                self._fail(request, error)

    def _forget_jobs(self, request: TrackedRequest) -> None:
        """The request has ended."""
        if request.timer is not None:
            request.timer.cancel()
        for job in request.plan.jobs:
            self._jobs.pop(job.job_id, None)
            self._dispatcher.cancel(job.job_id)
        self._loras.end(request.number)

    def _unfinished(self) -> list[TrackedRequest]:
        return [request for request in self._requests.values() if not request.ended]

    async def _watch_clock(self) -> None:
        while True:
            asleep = time.monotonic()
            await asyncio.sleep(_CLOCK_S)
            if time.monotonic() - asleep > 2 * _CLOCK_S:
                continue  # something kept us from reading what clients sent meanwhile
            gone = set(self._clients.end_leases(self._config.lease_s))
            for (client, request_id), request in list(self._requests.items()):
                if client in gone:
                    self._fail(request, CancelledError("the client is gone"))
                    del self._requests[client, request_id]
            self._dispatcher.check_decoder()
            self._tell_readiness()
            for request in self._unfinished():
                estimate = self._dispatcher.estimate(request.number)
                if not request.started and estimate is not None and estimate.position != request.position:
                    self._accepted(request)

    def _tell_readiness(self) -> None:
        ready = self._dispatcher.ready and not self._draining
        if ready != self._was_ready:
            log_event("ready" if ready else "not ready", token_budget=self._dispatcher.token_budget)
        self._was_ready = ready

    # ---- what the ranks do

    def ranks_ready(self) -> None:
        if self._dispatcher.restarts == 0:
            self._on_started(self._clients.address)
        dispatcher = self._dispatcher
        log_event(
            "ranks ready",
            device=dispatcher.device,
            restarts=dispatcher.restarts,
            attention=dispatcher.attention,
            memory_plan=" · ".join(" ".join(line.split()) for line in dispatcher.memory_plan) or None,
        )
        self._loras.ranks_ready()
        for request in self._unfinished():  # which came before the ranks' memory was known
            try:
                self._check_memory(request)
            except ArgumentError as error:
                self._fail(request, error)

    def ranks_lost(self, error: Krea2Error) -> bool:
        """Queue again what the ranks had. A request that they had each time that they died is not tried again."""
        log_event("ranks lost", level="error", code=error.code, message=error.message)
        self._metrics.restarts.inc()
        explained = self._loras.ranks_lost(error)
        unfinished = [request for request in self._unfinished() if len(request.decoded) < request.checked.num_images]
        for request in unfinished:
            if request.started:
                request.deaths += 1
                request.started = False
                request.timings = dict.fromkeys(request.timings, 0.0)
                request.steps_done = request.checked.steps * len(request.decoded)
        self._dispatcher.start_over(alone={r.number for r in unfinished if r.deaths >= _DEATHS_ALONE})
        killers = [request for request in unfinished if request.deaths >= _DEATHS_FATAL]
        for request in killers:
            times = f"{_DEATHS_FATAL} times, the last time alone"
            reason = f"ranks died {times}, while this request was in flight: {error.message}"
            self._fail(request, RequestKilledRanksError(reason))
        for request in unfinished:
            if not request.ended:
                self._accepted(request)
        return explained or bool(killers)

    def ranks_given_up(self, error: Krea2Error) -> None:
        log_event("ranks given up", level="error", code=error.code, message=error.message)
        for request in self._unfinished():
            self._fail(request, error)

    def job_started(self, job_id: int) -> None:
        request, _ = self._jobs[job_id]
        if not request.started:
            request.started = True
            request.timings["queue"] = time.monotonic() - request.arrived

    def step_done(self, step: Step, times: StepTimes, tokens: int) -> None:
        self._metrics.count_step(times, tokens)
        self._loras.step_done(step)
        requests = [self._jobs[job_id][0] for job_id in step.denoise if job_id in self._jobs]
        started = {self._jobs[job.job_id][0] for job in step.start if job.job_id in self._jobs}
        for request in requests:
            request.steps_done += 1
        for request in dict.fromkeys(requests):
            request.timings["denoise"] += times.denoise_s
            if request in started:
                request.timings["encode_text"] += times.encode_s
            self._answers.progress(request, self._dispatcher.estimate(request.number))

    def job_failed(self, job_id: int, error: Krea2Error) -> None:
        if job_id in self._jobs:
            self._fail(self._jobs[job_id][0], error)

    def image_previewed(self, previewed: Previewed, rgb: bytes) -> None:
        if previewed.job_id in self._jobs:
            self._spawn(self._send_preview(*self._jobs[previewed.job_id], previewed, rgb))

    async def _send_preview(self, request: TrackedRequest, job: Job, previewed: Previewed, rgb: bytes) -> None:
        file = await asyncio.to_thread(encode_preview, rgb, previewed.width, previewed.height)
        if job.job_id in self._jobs:
            self._answers.preview(request, job, previewed.step, file)

    def image_decoded(self, decoded: Decoded, rgb: bytes) -> None:
        if decoded.job_id in self._jobs:
            request, job = self._jobs[decoded.job_id]
            if not decoded.finite:
                self._fail(request, _not_finite(job))
                return
            request.decoded.add(job.job_id)
            self._spawn(self._send_image(request, job, decoded, rgb))

    async def _send_image(self, request: TrackedRequest, job: Job, decoded: Decoded, rgb: bytes) -> None:
        began = time.monotonic()
        try:
            file = await asyncio.to_thread(encode_image, rgb, request.checked, seed=job.seed)
        except Exception as error:
            traceback.print_exception(error)
            self._fail(request, Krea2Error(f"the image could not be written as a file: {describe(error)}"))
        if request.ended:  # cancelled, or failed, meanwhile
            return
        request.timings["decode"] += decoded.decode_s
        request.timings["file"] += time.monotonic() - began
        if self._answers.image(request, job, file):
            self._overview.done += 1
            self._forget_jobs(request)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


def _not_finite(job: Job) -> NotFiniteError:
    remedy = f"try less guidance than {job.guidance:g}" if job.guidance > 0 else "the checkpoint may be damaged"
    return NotFiniteError(f"the image with seed {job.seed} came out as no numbers: {remedy}")


def _stopping() -> ServerError:
    return ServerError("the server is being stopped and takes no more requests", retry_after_s=5.0)
