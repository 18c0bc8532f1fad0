"""Keeps the requests of a front-end, each from its arrival until its client has acknowledged the end.

A request is taken in and becomes one job for each image; the dispatcher says what becomes of jobs, and the client hears
it. When ranks die, the requests that they had run again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Container, Iterator
from dataclasses import replace

from engine import errors
from engine.config.model_config import ModelConfig
from engine.scheduling.outlook import Estimate
from engine.step import Step
from launcher.audit.trail import Trail
from launcher.awake import RealTimer
from launcher.disclosure.disclosure import Disclosure
from launcher.filters.checks import Checks
from launcher.frontend.admission.arrivals import Arrival, Spawn
from launcher.frontend.admission.followers import Follower
from launcher.frontend.admission.key_limits import Allowances
from launcher.frontend.delivery.finishing import Finishing
from launcher.frontend.delivery.replies import Replies
from launcher.frontend.delivery.tracked_requests import DEATHS_FATAL, TrackedRequest, TrackedRequests
from launcher.frontend.dispatcher import Dispatcher
from launcher.frontend.intake import Intake
from launcher.frontend.lora_service import LoraService
from launcher.messages.client_messages import Generate
from launcher.messages.configs import FrontendConfig
from launcher.messages.encoding import Files
from launcher.messages.rank_messages import Decoded, DoneStep, JobFailed, Previewed
from launcher.ranks.rank_group import JobReport
from launcher.requests.not_finite import no_picture
from launcher.requests.rank_memory import RankMemory
from launcher.requests.tokenizer import PromptTokenizer

_LINGER_S = 10.0  # for a request whose last client hung up, if it can be known when it is asked for again
_DEATHS_ALONE = 2  # of ranks with a request in flight, after which it runs alone


class LiveRequests:
    """Keeps the requests, by client and id, and hears what becomes of their jobs. draining: no more are taken.
    allowances: how much each key may have."""

    def __init__(
        self,
        config: FrontendConfig,
        model: ModelConfig,
        tokenizer: PromptTokenizer,
        job_ids: Iterator[int],
        replies: Replies,
        dispatcher: Dispatcher,
        loras: LoraService,
        spawn: Spawn,
        gate: Checks | None = None,
        trail: Trail | None = None,
    ) -> None:
        self._config, self._gate = config, gate
        self._replies, self._dispatcher, self._loras = replies, dispatcher, loras
        self.draining = False
        self._requests = TrackedRequests()
        self.allowances = Allowances(config.limits.max_queue, config.key_limits)
        self._intake = Intake(
            config, model, tokenizer, job_ids, dispatcher, loras, self._requests, self.allowances, spawn, gate, trail,
            on_taken=self._taken,
            tell=lambda follower, caller, error: self.give_up(*follower, caller, error),
        )  # fmt: skip
        self._arrivals = self._intake.arrivals
        self._finishing = Finishing(
            replies, spawn, gate, Disclosure.of(config.disclosure), trail,
            made_with=loras.made_with, fail=self._fail, on_done=lambda request: self._end(request, None),
        )  # fmt: skip

    @property
    def all_acknowledged(self) -> bool:
        """Whether all clients have what they were owed."""
        return self._requests.all_acknowledged

    @property
    def waiting_and_running(self) -> tuple[int, int]:
        """Count those that have not begun, the ones among them that are being examined, and those that have."""
        started = [request.started for request in self._requests]
        return started.count(False) + len(self._arrivals), started.count(True)

    def close(self, reason: errors.Krea2Error) -> None:
        """End all requests, and what was started for them."""
        self.fail(reason)
        self._intake.close()

    # ---- what clients ask for

    def generate(self, client: bytes, message: Generate, caller: str, files: Files) -> None:
        """Take a request, or say again what became of it if it is known. Raises the error for which it is refused.

        caller: whose it is. files: of its pictures, by their names.
        """
        follower = Follower(client, message.request_id)
        known = self._requests.followed_by(follower) or self._arrivals.followed_by(follower)
        if known is None:
            arrival = Arrival([follower], caller, message, time.monotonic(), files)
            known = self._intake.find(arrival)
            if known is not None:
                self._replies.repeated(follower, known.request_id, ended=known.ended)
        if isinstance(known, TrackedRequest):
            if not known.ended:
                self._replies.accepted(known, self._estimate(known), follower)
            self._replies.again(known, follower)
        elif known is None:
            if self.draining:
                raise errors.ServerError("the server is being stopped and takes no more requests", retry_after_s=5.0)
            self._intake.begin(arrival)

    def _taken(self, request: TrackedRequest) -> None:
        """Have the ranks make a request that has been taken in."""
        timeout_s = request.checked.timeout_s
        if timeout_s is not None:
            left_s = timeout_s - (time.monotonic() - request.arrived)
            request.timer = RealTimer(left_s, self._fail, request, errors.RequestTimeoutError.of(timeout_s))
        self._accepted(request)
        self._dispatcher.send_steps()

    def give_up(self, client: bytes, request_id: str, caller: str, failure: errors.Krea2Error) -> None:
        """Tell a client why its request was not taken."""
        follower = Follower(client, request_id)
        if (request := self._requests.followed_by(follower)) is not None:
            self._fail(request, failure)
        else:
            self._replies.refused(follower, caller, failure)

    def cancel(self, client: bytes, request_id: str, *, hung_up: bool) -> None:
        """End a request that nobody wants any more. hung_up: it may be asked for again, if it can be known then."""
        follower = Follower(client, request_id)
        error = errors.CancelledError("the request was cancelled")
        self._arrivals.leave(follower, error)
        request = self._requests.followed_by(follower)
        if request is None or request.ended:
            return
        if len(request.followers) > 1 or (hung_up and request.repeatable is not None):
            self._leave(follower, error)
        else:
            self._fail(request, error)

    def acknowledge(self, client: bytes, request_id: str) -> None:
        """Forget a request that has ended, as far as this client is concerned: it knows."""
        follower = Follower(client, request_id)
        if (request := self._requests.followed_by(follower)) is not None and request.ended:
            self._requests.leave(follower)
            self._replies.forget(follower)

    def abandon(self, clients: Collection[bytes], error: errors.Krea2Error) -> None:
        """End and forget what these clients wanted, which are gone; the error is for the log and the metrics."""
        for client in clients:
            for follower in self._arrivals.of_client(client):
                self._arrivals.leave(follower, error)
            for follower in self._requests.of_client(client):
                self._leave(follower, error)

    def _leave(self, follower: Follower, error: errors.Krea2Error) -> None:
        """Tell a follower that it follows no more, and end what only it wanted: at once, or when nobody has asked for
        it again."""
        request = self._requests.leave(follower)
        if not request.ended:
            self._replies.left(follower, error)
            if request.repeatable is None or self.draining:
                self._end_unfollowed(request, error)
            elif not request.followers:
                request.linger(_LINGER_S, self._end_unfollowed, error)

    def _end_unfollowed(self, request: TrackedRequest, error: errors.Krea2Error) -> None:
        if not request.followers:
            self._fail(request, error)

    def drain(self) -> int:
        """Take no more, and refuse what has not begun. Returns how many requests these were."""
        self.draining = True
        waiting = [request for request in self._requests if not request.started and not request.deaths]
        unread = [*self._arrivals]
        for request in self._requests:
            self._end_unfollowed(request, errors.CancelledError("nobody has asked for the request again"))
        error = errors.ServerError("the server is being stopped, and the request had not begun")
        for arrival in unread:
            self._arrivals.refuse(arrival, error)
        for request in waiting:
            self._fail(request, error)
        return len(unread) + len(waiting)

    def look(self) -> None:
        """Tell the clients whose place in the queue has changed, and forget answers that are too old."""
        self._intake.repeats.expire(time.monotonic())
        for request in self._requests:
            estimate = self._estimate(request)
            if not request.started and estimate is not None and estimate.position != request.position:
                self._accepted(request)

    def check_memory(self, memory: RankMemory) -> None:
        """Raise `ArgumentError` if a request that has not ended would not fit into the ranks' memory."""
        for request in self._requests:
            memory.check(request.plan, request.checked)

    def fail_too_large(self) -> None:
        """End requests that came before the ranks' memory was known, and do not fit into it."""
        for request in self._requests:
            try:
                self._dispatcher.status.step_memory.check(request.plan, request.checked)
            except errors.ArgumentError as error:
                self._fail(request, error)

    def _accepted(self, request: TrackedRequest) -> None:
        self._replies.accepted(request, self._estimate(request))

    def _estimate(self, request: TrackedRequest) -> Estimate | None:
        estimate = self._dispatcher.scheduler.estimate(request.number, time.monotonic())
        if self._gate is None or estimate is None or estimate.seconds is None:
            return estimate
        return replace(estimate, seconds=estimate.seconds + self._gate.image_s)

    def _fail(self, request: TrackedRequest, error: errors.Krea2Error) -> None:
        if not request.ended:
            self._replies.failed(request, error)
            self._end(request, error.code)
            self._dispatcher.send_steps()  # which tell the ranks to forget its jobs

    def fail(self, error: errors.Krea2Error, numbers: Container[int] | None = None) -> None:
        """End all requests that have not ended, or those of these numbers."""
        for arrival in self._arrivals if numbers is None else ():
            self._arrivals.refuse(arrival, error)
        for request in self._requests:
            if numbers is None or request.number in numbers:
                self._fail(request, error)

    def _end(self, request: TrackedRequest, failed: str | None) -> None:
        """Forget what is no longer needed of a request that has ended, well or with this error code."""
        if request.repeatable is not None:
            self._intake.repeats.end(request.repeatable, request.size, failed, time.monotonic())
        self._requests.end(request)
        self._finishing.forget(request)
        request.stop_timers()
        request.forget_picture()
        for job in request.plan.jobs:
            self._dispatcher.cancel(job.job_id)
        self._loras.end(request.number)

    # ---- what the ranks do

    def start_over(self, error: errors.Krea2Error) -> bool:
        """Queue again what lost ranks had, but for a request that they had each time that they died.

        Returns whether there was one.
        """
        unfinished = [request for request in self._requests if len(request.decoded) < request.checked.num_images]
        for request in self._requests:
            request.stop_waiting()
        for request in unfinished:
            if request.started:
                request.start_over(time.monotonic())
        self._dispatcher.scheduler.reset(alone={r.number for r in unfinished if r.deaths >= _DEATHS_ALONE})
        killers = [request for request in unfinished if request.deaths >= DEATHS_FATAL]
        for request in killers:
            times = f"{DEATHS_FATAL} times, the last time alone"
            reason = f"ranks died {times}, while this request was in flight: {error.message}"
            self._fail(request, errors.RequestKilledRanksError(reason))
        for request in unfinished:
            if not request.ended:
                self._accepted(request)
        return bool(killers)

    def step_sent(self, step: Step) -> None:
        """Note which requests have begun."""
        for request in self._requests.started_in(step):
            if not request.started:
                request.begin(time.monotonic())

    def step_done(self, done: DoneStep) -> None:
        """Count the step for its requests, and tell their clients."""
        now = time.monotonic()
        started = self._requests.started_in(done.step)
        for request, job_ids in self._requests.stepped_in(done.step).items():
            request.stepped(job_ids, done, now, encoded=request in started)
            self._replies.progress(request, self._estimate(request))

    def job_reported(self, report: JobReport, rgb: bytes) -> None:
        """Have an image or a preview finished and sent, or end the request of a failed job."""
        found = self._requests.with_job(report.job_id)
        if found is None:
            return
        request, job = found
        match report:
            case JobFailed(code=code, message=message):
                self._fail(request, errors.error_from_code(code, message))
            case Previewed():
                self._finishing.preview(request, job, report, rgb)
            case Decoded(finite=False):
                self._fail(request, no_picture(job.seed, request.checked, self._config.engine.merge_loras))
            case Decoded():
                self._finishing.image(request, job, report, rgb)
