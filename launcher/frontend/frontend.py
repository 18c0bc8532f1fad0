"""Runs a front-end: its start from a configuration, the messages that come to it, its clock, and its end.

Its parts: `clients` sends and receives, `live_requests` owns every request from its arrival until its client has the
images, the `dispatcher` turns their jobs into steps for the ranks. Imports no torch.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import zmq.asyncio

import engine
from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.errors import CancelledError, Krea2Error, ServerError
from engine.step import Step
from launcher.audit.trail import Trail
from launcher.filters.checks import Checks
from launcher.frontend.admission import key_files
from launcher.frontend.delivery.clients import Clients
from launcher.frontend.delivery.metrics import FilterMetrics, Metrics
from launcher.frontend.delivery.replies import Replies
from launcher.frontend.dispatcher import Dispatcher
from launcher.frontend.live_requests import LiveRequests
from launcher.frontend.lora_registry import open_registry
from launcher.frontend.lora_service import LoraService
from launcher.frontend.status import StatusReports
from launcher.frontend.warm_up import AfterWarmUp
from launcher.logs import log_event
from launcher.messages import client_messages as messages
from launcher.messages.configs import FrontendConfig
from launcher.messages.encoding import Files, as_krea2_error, describe
from launcher.messages.keys import ServerKeys
from launcher.messages.message_parts import Stage
from launcher.messages.own_clients import OwnClients
from launcher.messages.rank_messages import DoneStep, Ready
from launcher.processes import Child
from launcher.provenance.made_with import MadeWith
from launcher.ranks.gpu_health import Gpu, GpuError
from launcher.ranks.rank_group import JobReport
from launcher.requests.tokenizer import PromptTokenizer
from launcher.service_manager import ServiceManager

_CLOCK_S = 1.0
_DRAIN_LOOK_S = 0.05


class Frontend:
    """Puts a front-end's parts together, and hands on what comes: messages, time, and what becomes of the ranks.

    ranks: the processes of the rank group, the first by now. `on_stage` hears how far they are, `on_started` the
    clients' address once they and the filters are ready, `after_warm_up` what they were found to take for steps.
    own_clients: processes of ours that are clients. manager: who is told how the server is. make_gate: makes the
    filters, if there are any, of who hears of them. To be made in the event loop that it runs in. Raises
    `CheckpointError` for a bad tokenizer or config, `LoraError` for a bad LoRA, and `LaunchError` if the address cannot
    be used. Whoever makes one is to `run` it, which closes its sockets. An attribute for each part, so that there are
    17.
    """

    def __init__(
        self,
        config: FrontendConfig,
        ranks: list[Child],
        *,
        on_started: Callable[[str, Sequence[Ready]], None],
        on_stage: Callable[[Stage], None] = lambda stage: None,
        after_warm_up: AfterWarmUp | None = None,
        own_clients: OwnClients | None = None,
        manager: ServiceManager | None = None,
        make_gate: Callable[[FilterMetrics], Checks] | None = None,
    ) -> None:
        checkpoint = CheckpointFiles.open(config.engine)
        checkpoint.close()
        model = checkpoint.config
        tokenizer = PromptTokenizer(checkpoint.tokenizer, model.text_encoder.vocab_size)
        loras = open_registry(config, model)
        options = asdict(config.engine) | {"model": config.engine.name}
        log_event("starting", version=engine.__version__, pid=os.getpid(), **options)
        self._config, self._on_started, self._on_stage = config, on_started, on_stage
        self._manager = ServiceManager() if manager is None else manager
        self._was_ready = False
        self._to_start = {"ranks"} if make_gate is None else {"ranks", "filters"}
        self._tasks: set[asyncio.Task[object]] = set()
        self._metrics = Metrics()
        self._gate = None if make_gate is None else make_gate(self._metrics.filters)
        self._trail = Trail.of(config, self._metrics.audited)
        address = config.rpc or f"ipc://{config.run_folder}/clients"
        keys = None if config.rpc_keys is None else ServerKeys.load(config.rpc_keys)
        job_ids = itertools.count()
        with ExitStack() as cleanup:
            last = cleanup.enter_context(ExitStack())
            contexts = zmq.asyncio.Context(), zmq.asyncio.Context()  # one holds the keys of one socket at most
            for context in contexts:
                cleanup.callback(context.destroy)
            self._clients = Clients(
                address, contexts[0], run_folder=config.run_folder,
                processes=config.engine.ranks + sum(spec.workers for spec in config.filters),
                on_message=self._handle, limits=config.limits, keys=keys, own=own_clients,
            )  # fmt: skip
            last.callback(self._clients.end)
            self._dispatcher = Dispatcher(
                config, model, tokenizer.encode, job_ids, ranks, contexts[1], self, after_warm_up
            )
            self._cleanup = cleanup.pop_all()
        self._replies = Replies(self._clients, self._metrics)
        self._loras = LoraService(
            config, model, loras, self._clients, self._dispatcher, spawn=self._spawn,
            check_requests=lambda memory: self._requests.check_memory(memory),
            on_lost=lambda numbers, error: self._requests.fail(error, numbers),
            made_with=MadeWith(config.engine, checkpoint),
        )  # fmt: skip
        self._requests = LiveRequests(
            config, model, tokenizer, job_ids, self._replies, self._dispatcher, self._loras, self._spawn, self._gate,
            self._trail,
        )  # fmt: skip
        self._reports = StatusReports(
            config, self._metrics, self._clients, self._dispatcher, self._loras, self._requests, self._replies,
            self._gate,
        )  # fmt: skip
        if own_clients is not None:
            own_clients.follow(self._own_client_ended)

    async def run(self, stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        """Serve until `stop` is set and what runs has been drained, or `stop_now` is set.

        Raises the error of ranks that cannot be replaced, or of filters that cannot be started. All clients have been
        told when this returns or raises.
        """
        supervisor = self._dispatcher.supervisor
        endless = [self._clients.receive(), self._clients.send_waiting(), self._watch_clock(), supervisor.run()]
        endless += [self._manager.give_signs_of_life()]
        endless += [] if self._gate is None else [self._start_filters(self._gate)]
        serving = list(map(self._spawn, endless))
        stopping = [self._spawn(self._drain_after(stop)), self._spawn(stop_now.wait())]
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
            self._requests.close(reason)
            self._clients.close(reason)
            if self._gate is not None:
                self._gate.close()
            if self._trail is not None:
                self._trail.close()
            supervisor.close()
            for task in self._tasks:
                task.cancel()
            self._cleanup.close()

    @property
    def key_files(self) -> dict[str, Callable[[], int]]:
        """Files of keys and their limits, and what reads each again, in any thread, and returns how many it has."""
        limits, keys = self._config.key_limits, self._config.rpc_keys
        readers = {limits: self._requests.allowances.read, keys: self._clients.read_keys}
        return {file: partial(read, file) for file, read in readers.items() if file is not None}

    async def warn_of_limits(self, http_keys: Collection[str]) -> None:
        """Log which limits are of keys that there are not; http_keys: the names of those that are for HTTP."""
        await key_files.warn_of_unknown(self._requests.allowances.limits, {*http_keys, *self._clients.key_names})

    async def _drain_after(self, stop: asyncio.Event) -> None:
        """Refuse what comes and what has not begun, and wait until the rest has been acknowledged, for `drain_s`."""
        await stop.wait()
        refused, running = self._requests.drain(), sum(self._requests.waiting_and_running)
        log_event("draining", running=running, refused=refused, drain_s=self._config.drain_s)
        self._manager.stopping(f"finishing {running} requests")
        loop = asyncio.get_running_loop()
        due = loop.time() + self._config.drain_s
        while not self._requests.all_acknowledged and loop.time() < due:
            await asyncio.sleep(_DRAIN_LOOK_S)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- what clients send

    def _handle(self, client: bytes, message: messages.Request, files: Files) -> None:
        match message:
            case messages.Generate(request_id=request_id):
                caller = self._clients.caller_of(client, message)
                try:
                    self._requests.generate(client, message, caller, files)
                except Exception as error:
                    self._requests.give_up(client, request_id, caller, as_krea2_error(error))
            case messages.Cancel(request_id=request_id):
                self._requests.cancel(client, request_id, hung_up=self._clients.is_own(client))
            case messages.Acknowledge(request_id=request_id):
                self._requests.acknowledge(client, request_id)
            case messages.LoadLora() | messages.UnloadLora() | messages.ListLoras():
                self._loras.handle(client, message)
            case messages.Status():
                self._clients.send(client, self._reports.status())
            case messages.Metrics():
                self._clients.send(client, messages.MetricsReply(), self._reports.render_metrics())

    def _own_client_ended(self, client: bytes) -> None:
        self._clients.end_own(client)
        self._requests.abandon({client}, ServerError("the process that served the client has ended"))

    # ---- what time brings

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_S)
            gone = self._clients.end_leases(self._config.lease_s)
            self._requests.abandon(set(gone), CancelledError("the client is gone"))
            self._dispatcher.check_decoder()
            reason, budget = self._reports.not_ready, self._dispatcher.scheduler.token_budget
            ready = reason is None
            if ready != self._was_ready:
                log_event("ready" if ready else "not ready", token_budget=budget, reason=reason)
                self._manager.ready(reason)
            self._was_ready = ready
            self._requests.look()
            self.ranks_loading()

    # ---- what starts

    async def _start_filters(self, gate: Checks) -> None:
        """Start the filters. Ends only by raising."""
        await gate.start()
        self._has_started("filters")
        await asyncio.Event().wait()

    def _has_started(self, part: str) -> None:
        """Say that the server has started when all parts of it have, which is said once."""
        if self._to_start == {part}:
            self._on_started(self._clients.address, self._dispatcher.supervisor.group.all_ready)
        self._to_start.discard(part)

    # ---- what becomes of the ranks: see `RankEvents`

    def ranks_loading(self) -> None:
        ranks = self._dispatcher.status
        if ranks.stage is not None and not ranks.answering and not ranks.replacing:
            self._on_stage(ranks.stage)

    def ranks_ready(self) -> None:
        ranks = self._dispatcher.status
        assert ranks.first is not None
        self._has_started("ranks")
        plan = " · ".join(" ".join(line.split()) for line in ranks.first.memory_plan) or None
        log_event(
            "ranks ready", device=ranks.first.device, restarts=ranks.restarts, attention=ranks.first.attention,
            memory_plan=plan,
        )  # fmt: skip
        self._loras.ranks_ready()
        self._requests.fail_too_large()

    def step_sent(self, step: Step) -> None:
        self._requests.step_sent(step)

    def step_done(self, done: DoneStep) -> None:
        self._metrics.count_step(done)
        self._loras.step_done(done.step)
        self._requests.step_done(done)

    def job_reported(self, report: JobReport, rgb: bytes) -> None:
        self._requests.job_reported(report, rgb)

    def ranks_lost(self, error: Krea2Error) -> bool:
        log_event("ranks lost", level="error", code=error.code, message=error.message)
        self._metrics.restarts.inc()
        self._to_start |= {"ranks"} if self._to_start else set()
        lora_at_fault = self._loras.ranks_lost(error)
        request_at_fault = self._requests.start_over(error)
        return lora_at_fault or request_at_fault

    def ranks_given_up(self, error: Krea2Error) -> None:
        log_event("ranks given up", level="error", code=error.code, message=error.message)
        self._requests.fail(error)

    def gpu_failed(self, error: GpuError) -> None:
        gpu, level = error.gpu, "error" if error.is_hardware else "warning"
        fields = {"device": gpu.index, "name": gpu.name, "uuid": gpu.selector, "xid": error.code}
        log_event("gpu error", level=level, **fields, message=error.meaning)
        self._metrics.gpu_errors.labels(gpu.index, error.code).inc()

    def gpu_quarantined(self, gpu: Gpu, reason: str) -> None:
        log_event("gpu quarantined", level="error", device=gpu.index, name=gpu.name, uuid=gpu.selector, message=reason)
        self._metrics.quarantined.labels(gpu.index).set(1)
