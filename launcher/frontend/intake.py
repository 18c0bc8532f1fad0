"""Takes requests in: checks and plans each, and queues its jobs, or says why not.

Whatever can be refused is refused here, before a rank hears of it.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterator

from engine import errors
from engine.config.model_config import ModelConfig
from launcher.frontend.admission.deadlines import Deadlines
from launcher.frontend.admission.key_limits import Allowances, InFlight
from launcher.frontend.admission.repeats import Repeatable
from launcher.frontend.dispatcher import Dispatcher
from launcher.frontend.lora_service import LoraService
from launcher.frontend.tracked_requests import Follower, TrackedRequest, TrackedRequests
from launcher.messages.client_messages import Generate
from launcher.messages.configs import FrontendConfig
from launcher.requests.check import check
from launcher.requests.explained.life import Life
from launcher.requests.plan import make_plan
from launcher.requests.tokenizer import PromptTokenizer

_MOST_KEPT_BYTES = 512 * 2**20  # of images that a client has not acknowledged


class Intake:
    """Makes tracked requests of messages. requests: those that are there."""

    def __init__(
        self,
        config: FrontendConfig,
        model: ModelConfig,
        tokenizer: PromptTokenizer,
        job_ids: Iterator[int],
        dispatcher: Dispatcher,
        loras: LoraService,
        requests: TrackedRequests,
        allowances: Allowances,
    ) -> None:
        self._limits, self._engine, self._model, self._tokenizer = config.limits, config.engine, model, tokenizer
        self._job_ids, self._numbers = job_ids, itertools.count()
        self._dispatcher, self._loras, self._requests = dispatcher, loras, requests
        self._deadlines, self._allowances = Deadlines(dispatcher.scheduler), allowances

    def take(self, follower: Follower, message: Generate, caller: str, repeatable: Repeatable | None) -> TrackedRequest:
        """Queue the jobs of a new request.

        Raises the error for which it is refused: then nothing has changed, and it does not count for its key.
        """
        came, ranks = time.monotonic(), self._dispatcher.status
        if ranks.given_up is not None:
            raise ranks.given_up.with_traceback(None)  # which each raise would add to
        loras = self._loras.registry
        loras.check_lost(use.name for use in message.loras)
        strengths = {name: entry.strength for name, entry in loras.named.items()}
        drawn_seed = secrets.randbelow(2**32)
        checked = check(message, self._model, self._limits, drawn_seed=drawn_seed, loras=strengths)
        self._check_queue(follower.client)
        self._check_allowance(caller, checked.priority)
        lora_ids = {name: entry.adapter.adapter_id for name, entry in loras.named.items()}
        plan = make_plan(checked, self._model, self._tokenizer.encode, self._job_ids, lora_ids)
        ranks.step_memory.check(plan, checked)
        number, arrived = next(self._numbers), time.monotonic()
        for job in plan.jobs:
            self._dispatcher.add(
                job,
                segments=plan.segments,
                request=number,
                priority=checked.priority,
                arrived=arrived,
                pixels=None if checked.picture is None else checked.picture.pixels,
            )
        try:
            self._deadlines.check(number, plan, checked.timeout_s, idle=not any(self._requests), now=arrived)
        except errors.QueueFullError:
            for job in plan.jobs:
                self._dispatcher.cancel(job.job_id)
            raise
        self._allowances.count(caller, arrived)
        for name, _ in checked.loras:
            loras.named[name].users.add(number)
        life = None
        if checked.explain:
            life = Life(checked, plan, self._model, self._engine, came=came, accepted=arrived)
        return TrackedRequest(number, [follower], caller, repeatable, checked, plan, arrived, life)

    def _check_allowance(self, caller: str, priority: int) -> None:
        """Raise `RateLimitedError` if the caller has what its key may have for now."""
        if self._allowances.limits is None:
            return
        now = time.monotonic()
        own = [request for request in self._requests if request.caller == caller]
        estimates = [self._dispatcher.scheduler.estimate(request.number, now) for request in own]
        seconds = [estimate.seconds for estimate in estimates if estimate is not None and estimate.seconds is not None]
        in_flight = InFlight(len(own), sum(not request.started for request in own), min(seconds, default=None))
        self._allowances.check(caller, priority, in_flight, now)

    def _check_queue(self, client: bytes) -> None:
        """Raise `QueueFullError` if too much waits, or the client has not acknowledged too much."""
        followed = self._requests.of_client(client).values()
        waiting = sum(not request.started for request in self._requests)
        full = max(waiting, sum(request.ended for request in followed))
        if full >= self._limits.max_queue:
            backlog = self._dispatcher.scheduler.backlog_s(time.monotonic())
            wait = None if backlog is None else max(1.0, backlog)
            later = "later" if wait is None else f"in about {wait:.0f} s"
            raise errors.QueueFullError(
                f"the queue is full with {full} requests: try again {later}", retry_after_s=wait
            )
        if sum(request.size for request in followed) > _MOST_KEPT_BYTES:
            raise errors.QueueFullError("images that this client has not acknowledged fill the memory that it may have")
