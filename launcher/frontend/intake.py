"""Takes requests in: has their pictures read and filters look at them, checks and plans each, and queues its jobs, or
says why not.

Whatever can be refused is refused here, before a rank hears of it; what needs no picture is checked before one is read.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from engine import errors
from engine.config.model_config import ModelConfig
from launcher.audit.trail import Trail
from launcher.awake import RealTimer
from launcher.filters.checks import Checks
from launcher.filters.protocol import Prompt
from launcher.filters.verdicts import BlockedError, log_findings
from launcher.frontend.admission.arrivals import Arrival, Arrivals, Spawn, Tell
from launcher.frontend.admission.deadlines import Deadlines
from launcher.frontend.admission.examined import Examined, uploads_of
from launcher.frontend.admission.key_limits import Allowances, InFlight
from launcher.frontend.admission.repeats import Repeats
from launcher.frontend.delivery.tracked_requests import TrackedRequest, TrackedRequests, without_picture
from launcher.frontend.dispatcher import Dispatcher
from launcher.frontend.lora_service import LoraService
from launcher.messages.configs import FrontendConfig
from launcher.messages.encoding import as_krea2_error
from launcher.pictures.reading import PictureReader
from launcher.pictures.wanted import NO_PICTURES
from launcher.requests.check import CheckedRequest, check
from launcher.requests.explained.life import Life
from launcher.requests.plan import Plan, make_plan
from launcher.requests.schedule.saved_steps import check_shared
from launcher.requests.tokenizer import PromptTokenizer

_MOST_KEPT_BYTES = 512 * 2**20  # of images that a client has not acknowledged
_MOST_PICTURE_BYTES = 2**30  # of the pictures of all requests, from their arrival to their end


class Intake:
    """Makes tracked requests of messages. requests: those that are there. on_taken hears of each that there is now.
    arrivals: requests that are being examined; `tell` hears whom to tell that one is refused after all. gate: the
    filters of prompts and pictures, if there are any; trail: writes down what they refuse. repeats: requests that are
    known by their keys. More attributes than others: all by which a request is judged."""

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
        spawn: Spawn,
        gate: Checks | None,
        trail: Trail | None,
        *,
        on_taken: Callable[[TrackedRequest], None],
        tell: Tell,
    ) -> None:
        self._limits, self._engine, self._model, self._tokenizer = config.limits, config.engine, model, tokenizer
        self._job_ids, self._numbers = job_ids, itertools.count()
        self._dispatcher, self._loras, self._requests = dispatcher, loras, requests
        self._deadlines, self._allowances = Deadlines(dispatcher.scheduler), allowances
        self._on_taken, self._reader = on_taken, PictureReader()
        self._gate, self._trail = gate, trail
        self.arrivals = Arrivals(spawn, on_examined=self._examined, on_ended=self._arrival_ended, tell=tell)
        self.repeats: Repeats[TrackedRequest | Arrival] = Repeats()

    def close(self) -> None:
        """End the process that reads pictures."""
        self._reader.close()

    # ---- a request comes

    def find(self, arrival: Arrival) -> TrackedRequest | Arrival | None:
        """Give the request that a new one repeats, by its idempotency key, and have who sent it follow that.

        Raises `IdempotencyConflictError` if it asks for something else, and `ArgumentError` if it lacks its pictures.
        """
        names = arrival.message.pictures
        if names and not arrival.files:
            told = "and no request of this name is known here: send it again with its files behind the header"
            raise errors.ArgumentError(f"{names[0]} came without its file, {told}", parameter=names[0])
        known = None if arrival.repeatable is None else self.repeats.find(arrival.repeatable, arrival.digest)
        if isinstance(known, Arrival):
            self.arrivals.join(known, arrival.followers[0])
        elif known is not None:
            self._requests.join(known, arrival.followers[0])
        return known

    def begin(self, arrival: Arrival) -> None:
        """Take a new request, at once or when its pictures have been read and the filters have answered.

        Raises the error for which it is refused: then nothing has changed, and it does not count for its key.
        """
        message = arrival.message
        if not message.pictures and self._gate is None:
            self._take(arrival)
            return
        if message.pictures and not self._engine.image_input:
            raise errors.ArgumentError(NO_PICTURES, parameter="image")
        checked = self._check(arrival)
        if message.pictures:
            self._check_room(arrival.size)
        if checked.timeout_s is not None:
            arrival.timer = RealTimer(
                checked.timeout_s, self.arrivals.refuse, arrival, errors.RequestTimeoutError.of(checked.timeout_s)
            )
        if arrival.repeatable is not None:
            self.repeats.begin(arrival.repeatable, arrival.digest, arrival)
        self.arrivals.begin(arrival, self._examine(arrival, checked))

    async def _examine(self, arrival: Arrival, checked: CheckedRequest) -> Examined:
        picture = judged = read = filtered = None
        if arrival.message.pictures:
            picture = await self._reader.read(arrival.message, arrival.files, self._model, self._limits)
            read = time.monotonic()
            self._check_room(picture.size - arrival.size)
            arrival.was_read(picture)
        if self._gate is not None:
            prompt = Prompt(checked.prompt, checked.negative_prompt or None)
            uploads = [] if picture is None else list(uploads_of(picture, checked.prompt))
            try:
                judged = await self._gate.check_prompt(prompt, uploads, moderation=checked.moderation)
            except BlockedError as error:
                log_findings(arrival.request_id, error.findings)
                if self._trail is not None:
                    await self._trail.refused(arrival.request_id, arrival.caller, checked, error)
                raise
            log_findings(arrival.request_id, judged.findings)
            filtered = time.monotonic()
        return Examined(picture, judged, read, filtered)

    def _examined(self, arrival: Arrival, examined: Examined) -> None:
        try:
            self._take(arrival, examined)
        except Exception as error:
            self.arrivals.give_up(arrival, as_krea2_error(error))

    def _arrival_ended(self, arrival: Arrival) -> None:
        if arrival.repeatable is not None:
            self.repeats.forget(arrival.repeatable)

    # ---- and is taken

    def _take(self, arrival: Arrival, examined: Examined | None = None) -> None:
        """Queue the jobs of a new request. Raises the error for which it is refused, when nothing has changed."""
        checked = self._check(arrival, examined)
        loras = self._loras.registry
        lora_ids = {name: entry.adapter.adapter_id for name, entry in loras.named.items()}
        plan = make_plan(checked, self._model, self._tokenizer.encode, self._job_ids, lora_ids)
        self._dispatcher.status.step_memory.check(plan, checked)
        number, now = next(self._numbers), time.monotonic()
        for job in plan.jobs:
            self._dispatcher.add(
                job,
                segments=plan.segments,
                request=number,
                priority=checked.priority,
                arrived=arrival.came,
                pixels=None if checked.picture is None else checked.picture.pixels,
            )
        try:
            self._deadlines.check(
                number,
                plan,
                checked.timeout_s,
                idle=not any(self._requests),
                now=now,
                waited_s=0.0 if examined is None else now - arrival.came,
                filter_s=0.0 if self._gate is None else self._gate.image_s,
            )
        except errors.QueueFullError:
            for job in plan.jobs:
                self._dispatcher.cancel(job.job_id)
            raise
        self._allowances.count(arrival.caller, now)
        for name, _ in checked.loras:
            loras.named[name].users.add(number)
        request = TrackedRequest(
            number,
            arrival.followers,
            arrival.caller,
            arrival.repeatable,
            checked,
            plan,
            now if examined is None else arrival.came,
            self._life(arrival, checked, plan, now, examined) if checked.explain else None,
            judged=None if examined is None else examined.judged,
            filter_prompt_s=0.0 if examined is None else examined.filter_s(arrival.came),
        )
        self._requests.add(request)
        if arrival.repeatable is not None:
            self.repeats.begin(arrival.repeatable, arrival.digest, request)
        self._on_taken(request)

    def _life(
        self, arrival: Arrival, checked: CheckedRequest, plan: Plan, now: float, examined: Examined | None
    ) -> Life:
        read, filtered = (None, None) if examined is None else (examined.read, examined.filtered)
        asked = without_picture(checked)
        return Life(
            asked, plan, self._model, self._engine, came=arrival.came, accepted=now, read=read, filtered=filtered
        )

    def _check(self, arrival: Arrival, examined: Examined | None = None) -> CheckedRequest:
        """Check all that can be before it is examined, and again when it has been: against what else is here, which
        then is what came before it."""
        ranks, loras = self._dispatcher.status, self._loras.registry
        if ranks.given_up is not None:
            raise ranks.given_up.with_traceback(None)  # which each raise would add to
        loras.check_lost(use.name for use in arrival.message.loras)
        strengths = {name: entry.strength for name, entry in loras.named.items()}
        drawn_seed = secrets.randbelow(2**32)
        checked = check(
            arrival.message,
            self._model,
            self._limits,
            drawn_seed=drawn_seed,
            loras=strengths,
            made_for=loras.made_for(),
            picture=None if examined is None else examined.picture,
        )
        check_shared(checked.cache, self._model, self._engine.degrees)
        if examined is not None and examined.judged is not None:
            checked = replace(checked, warnings=(*checked.warnings, *examined.judged.warnings))
        unread = [] if examined is not None else [*self.arrivals]
        self._check_queue(arrival.followers[0].client, len(unread))
        self._check_allowance(arrival.caller, checked.priority, sum(each.caller == arrival.caller for each in unread))
        return checked

    def _check_allowance(self, caller: str, priority: int, unread: int) -> None:
        """Raise `RateLimitedError` if the caller has what its key may have for now. unread: how many of its requests
        are still to be taken."""
        if self._allowances.limits is None:
            return
        now = time.monotonic()
        own = [request for request in self._requests if request.caller == caller]
        estimates = [self._dispatcher.scheduler.estimate(request.number, now) for request in own]
        seconds = [estimate.seconds for estimate in estimates if estimate is not None and estimate.seconds is not None]
        waiting = sum(not request.started for request in own) + unread
        in_flight = InFlight(len(own) + unread, waiting, min(seconds, default=None), unread)
        self._allowances.check(caller, priority, in_flight, now)

    def _check_queue(self, client: bytes, unread: int) -> None:
        """Raise `QueueFullError` if too much waits, or the client has not acknowledged too much."""
        followed = self._requests.of_client(client).values()
        waiting = sum(not request.started for request in self._requests) + unread
        full = max(waiting, sum(request.ended for request in followed))
        if full >= self._limits.max_queue:
            wait, later = self._later()
            raise errors.QueueFullError(f"the queue is full with {full} requests: {later}", retry_after_s=wait)
        if sum(request.size for request in followed) > _MOST_KEPT_BYTES:
            raise errors.QueueFullError("images that this client has not acknowledged fill the memory that it may have")

    def _check_room(self, size: int) -> None:
        """Raise `QueueFullError` if there is no memory for the pictures of a request beside those that are here."""
        held = sum(arrival.size for arrival in self.arrivals) + sum(request.picture_size for request in self._requests)
        if held + size > _MOST_PICTURE_BYTES:
            wait, later = self._later()
            told = f"the pictures of other requests fill the {_MOST_PICTURE_BYTES / 2**30:g} GiB that there is for them"
            raise errors.QueueFullError(f"{told}: {later}", parameter="image", retry_after_s=wait)

    def _later(self) -> tuple[float | None, str]:
        """Say when there may be room again, in seconds and in words."""
        backlog = self._dispatcher.scheduler.backlog_s(time.monotonic())
        wait = None if backlog is None else max(1.0, backlog)
        return wait, "try again later" if wait is None else f"try again in about {wait:.0f} s"
