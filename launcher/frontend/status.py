"""Says how a front-end is: its status, and its metrics in Prometheus' text format."""

from __future__ import annotations

import time

from launcher.filters.checks import Checks
from launcher.frontend.delivery.clients import Clients
from launcher.frontend.delivery.metrics import Metrics
from launcher.frontend.delivery.replies import Replies
from launcher.frontend.dispatcher import Dispatcher
from launcher.frontend.live_requests import LiveRequests
from launcher.frontend.lora_service import LoraService
from launcher.logs import dropped_lines
from launcher.messages.client_messages import StatusReply
from launcher.messages.configs import FrontendConfig


class StatusReports:
    """Puts together what the parts of a front-end say of themselves."""

    def __init__(
        self,
        config: FrontendConfig,
        metrics: Metrics,
        clients: Clients,
        dispatcher: Dispatcher,
        loras: LoraService,
        requests: LiveRequests,
        replies: Replies,
        gate: Checks | None = None,
    ) -> None:
        self._engine, self._metrics, self._clients, self._dispatcher = config.engine, metrics, clients, dispatcher
        self._loras, self._requests, self._replies, self._gate = loras, requests, replies, gate
        self._began = time.monotonic()

    @property
    def not_ready(self) -> str | None:
        """Why requests are not served now; None if they are."""
        if self._requests.draining:
            return "it is being stopped"
        return self._dispatcher.status.not_ready or (None if self._gate is None else self._gate.not_ready)

    def status(self) -> StatusReply:
        """Say what it is doing."""
        engine, ranks, not_ready = self._engine, self._dispatcher.status, self.not_ready
        waiting, running = self._requests.waiting_and_running
        return StatusReply(
            model=engine.name,
            tp=engine.tp, sp=engine.sp, cfg_parallel=engine.cfg_parallel,
            device=ranks.first.device if ranks.first else None,
            ready=not_ready is None,
            not_ready=not_ready,
            stage=ranks.stage,
            uptime_s=time.monotonic() - self._began,
            waiting=waiting, running=running,
            done=self._replies.num_done,
            failed=self._replies.num_failed,
            dropped_messages=self._clients.dropped_messages,
            restarts=ranks.restarts, given_up=ranks.given_up is not None,
            rank_memory=ranks.rank_memory,
            memory_plan=ranks.first.memory_plan if ranks.first else (),
            loras=self._loras.listed(),
            merged_loras=self._loras.merged(),
            quarantined=self._dispatcher.supervisor.gpus.quarantined,
            backlog_s=self._dispatcher.scheduler.backlog_s(time.monotonic()),
        )  # fmt: skip

    def render_metrics(self) -> bytes:
        """Write the metrics."""
        status = self.status()
        decode_waiting, decode_running = self._dispatcher.scheduler.images_to_decode()
        return self._metrics.render(
            status.rank_memory, requests_waiting=status.waiting, requests_running=status.running,
            decode_waiting=decode_waiting, decode_running=decode_running, ready=status.ready,
            backlog_seconds=status.backlog_s, token_budget=self._dispatcher.scheduler.token_budget,
            dropped_messages=status.dropped_messages, dropped_log_lines=dropped_lines(), loras=len(status.loras),
            rpc_connections=self._clients.connections, lora_bytes=self._loras.bytes_held,
        )  # fmt: skip
