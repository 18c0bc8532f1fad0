"""What a front-end tells of itself: its status, and its metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence

from launcher.frontend.clients import Clients
from launcher.frontend.dispatcher import Dispatcher
from launcher.frontend.lora_service import LoraService
from launcher.frontend.metrics import Metrics
from launcher.frontend.replies import Replies, TrackedRequest
from launcher.messages.client_messages import StatusReply
from launcher.messages.configs import FrontendConfig


class StatusReporter:
    """Looks at all parts of a front-end, and changes none."""

    def __init__(
        self,
        config: FrontendConfig,
        dispatcher: Dispatcher,
        clients: Clients,
        replies: Replies,
        loras: LoraService,
        metrics: Metrics,
    ) -> None:
        self._config, self._dispatcher, self._clients = config, dispatcher, clients
        self._replies, self._loras, self._metrics = replies, loras, metrics
        self._began = time.monotonic()

    def status(self, unfinished: Sequence[TrackedRequest], *, draining: bool) -> StatusReply:
        running = sum(request.started for request in unfinished)
        return StatusReply(
            model=self._config.engine.name,
            tp=self._config.engine.tp,
            sp=self._config.engine.sp,
            cfg_parallel=self._config.engine.cfg_parallel,
            device=self._dispatcher.device,
            ready=self._dispatcher.ready and not draining,
            uptime_s=time.monotonic() - self._began,
            waiting=len(unfinished) - running,
            running=running,
            done=self._replies.num_done,
            failed=self._replies.num_failed,
            dropped_messages=self._clients.dropped_messages,
            restarts=self._dispatcher.restarts,
            rank_memory=self._dispatcher.memory,
            memory_plan=self._dispatcher.memory_plan,
            loras=self._loras.listed(),
            merged_loras=self._loras.merged(),
        )

    def render_metrics(self, unfinished: Sequence[TrackedRequest], *, draining: bool) -> bytes:
        """In Prometheus' text format."""
        running = sum(request.started for request in unfinished)
        return self._metrics.render(
            waiting=len(unfinished) - running,
            running=running,
            ready=self._dispatcher.ready and not draining,
            token_budget=self._dispatcher.token_budget,
            dropped_messages=self._clients.dropped_messages,
            rank_memory=self._dispatcher.memory,
            loras=len(self._loras.registry.named),
            lora_bytes=self._loras.bytes_held,
        )
