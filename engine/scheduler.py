"""Which jobs step next. Plain Python: no torch, no I/O, and no clock but the `now` that callers give.

In each tick the jobs that the policy puts first are packed up to a token budget. Jobs may be passed over from tick to
tick, which costs nothing: their latents stay where they are. Encoding prompts and decoding images are work too, and
bounded per tick. docs/scheduling.md explains it with an example.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.cost import CostModel, Segments
from engine.step import Job, Step

_ENCODE_TOKENS = 2048  # prompt tokens encoded in one tick, unless the first job alone has more
_DECODES_AHEAD = 2  # images handed to rank 0 before it has given one back
_LOOK_AHEAD = 16  # jobs passed over in one estimated tick for want of room
_MOST_BEGUN = 64  # jobs with latents on the ranks, at which only the first in order may still begin


@dataclass
class Queued:
    """A job in the scheduler, and what a policy may go by."""

    job: Job
    segments: Segments
    request: int
    priority: int
    arrived: float
    alone: bool
    remaining: int  # steps
    begun: bool = False
    work_left: float = 0.0  # of the whole request, in seconds, or in tokens while speeds are not known
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = sum(self.segments)


class Policy(Protocol):
    """Who goes first."""

    def key(self, queued: Queued, now: float) -> tuple[float, ...]:
        """Jobs are served in ascending order of this."""


class LeastWorkFirst:
    """Priority, then least work left in the request; but a job that has waited for `patience_s` goes before all others.

    Overdue jobs go in order of arrival, and the first job of all is in every tick. So a job is done at most
    `patience_s`, one tick, and the time of all the work that had arrived when it did, after it arrived.
    """

    def __init__(self, patience_s: float = 60.0) -> None:
        self.patience_s = patience_s

    def key(self, queued: Queued, now: float) -> tuple[float, ...]:
        if now - queued.arrived >= self.patience_s:
            return (0, queued.arrived)
        return (1, -queued.priority, queued.work_left, queued.arrived)


@dataclass(frozen=True)
class Estimate:
    """`position`: images of others that begin before the first of this request; `seconds` until its last is done."""

    position: int
    seconds: float | None


class Scheduler:
    """Turns jobs into numbered steps.

    `token_budget` bounds the packed tokens of a tick; a job larger than the budget runs by itself. Tokens of a job are
    those of all its segments: text and image, twice when it is guided.
    """

    def __init__(self, token_budget: int, *, policy: Policy | None = None, costs: CostModel | None = None) -> None:
        if token_budget < 1:
            raise ValueError("token_budget must be positive")
        self.token_budget = token_budget
        self._policy = policy or LeastWorkFirst()
        self._costs = costs or CostModel()
        self._queued: dict[int, Queued] = {}  # with steps left
        self._finished: dict[int, Queued] = {}  # which wait for their image to be decoded
        self._decoding: dict[int, Queued] = {}
        self._releases: list[int] = []
        self._next_number = 0

    def add(
        self, job: Job, *, segments: Segments, request: int, now: float, priority: int = 0, alone: bool = False
    ) -> None:
        """Queue a job; `request` is the same for all images of a request, `now` when it arrived.

        alone: while such a job is queued no other begins, and when no other is under way it steps by itself, each
        step once the ranks are idle, request after request.
        """
        if job.job_id in self._queued:
            raise ValueError(f"job {job.job_id} is queued already")
        self._queued[job.job_id] = Queued(job, segments, request, priority, now, alone, job.steps)

    def cancel(self, job_id: int) -> None:
        """Leave the job out of every step not yet made. Unknown and finished jobs are ignored."""
        queued = self._queued.pop(job_id, None) or self._finished.pop(job_id, None)
        if queued is not None and queued.begun:
            self._releases.append(job_id)

    def decoded(self, job_id: int) -> None:
        """The image has come. Unknown jobs are ignored."""
        self._decoding.pop(job_id, None)

    def next_step(self, now: float, *, idle: bool) -> Step | None:
        """The next step, or None if there is nothing to do now. idle: the ranks have no step and no image under way."""
        chosen = self._choose(now, idle=idle)
        for queued in chosen:
            queued.remaining -= 1
            if queued.remaining == 0:
                self._finished[queued.job.job_id] = self._queued.pop(queued.job.job_id)
        decode = self._choose_decodes(now)
        if not (chosen or decode or self._releases):
            return None
        step = Step(
            number=self._take_number(),
            start=tuple(queued.job for queued in chosen if not queued.begun),
            denoise=tuple(queued.job.job_id for queued in chosen),
            decode=decode,
            release=tuple(self._releases),
        )
        self._releases = []
        for queued in chosen:
            queued.begun = True
        return step

    def empty_step(self) -> Step:
        """A step in which nothing is done: whoever executes it shows that it can."""
        return Step(number=self._take_number())

    # ---- choosing

    def _choose(self, now: float, *, idle: bool) -> list[Queued]:
        candidates: Iterable[Queued] = self._queued.values()
        if any(queued.alone for queued in self._queued.values()):
            others = [queued for queued in self._queued.values() if queued.begun and not queued.alone]
            if not others and not idle:
                return []
            candidates = others or self._one_alone(now)
        begun = sum(queued.begun for queued in self._queued.values()) + len(self._finished)
        chosen: list[Queued] = []
        tokens, prompts, encoded = 0, set[tuple[int, ...]](), 0
        for queued in self._in_order(candidates, now):
            if chosen and tokens + queued.tokens > self.token_budget:
                continue
            if not queued.begun:
                new = set(_prompts(queued.job)) - prompts
                fits = encoded + sum(map(len, new)) <= _ENCODE_TOKENS and begun < _MOST_BEGUN
                if chosen and not fits:
                    continue
                prompts |= new
                encoded += sum(map(len, new))
                begun += 1
            chosen.append(queued)
            tokens += queued.tokens
            if tokens >= self.token_budget:
                break
        return chosen

    def _one_alone(self, now: float) -> list[Queued]:
        """The jobs of the alone request whose turn it is: one that has begun goes on."""
        alone = [queued for queued in self._in_order(self._queued.values(), now) if queued.alone]
        first = next((queued for queued in alone if queued.begun), alone[0])
        return [queued for queued in alone if queued.request == first.request]

    def _choose_decodes(self, now: float) -> tuple[int, ...]:
        room = _DECODES_AHEAD - len(self._decoding)
        if not self._finished or room <= 0:
            return ()
        chosen = self._in_order(self._finished.values(), now)[:room]
        for queued in chosen:
            self._decoding[queued.job.job_id] = self._finished.pop(queued.job.job_id)
        return tuple(queued.job.job_id for queued in chosen)

    def _in_order(self, candidates: Iterable[Queued], now: float) -> list[Queued]:
        work: dict[int, float] = {}
        for queued in self._queued.values():
            work[queued.request] = work.get(queued.request, 0.0) + queued.remaining * self._share(queued)
        jobs = list(candidates)
        for queued in jobs:
            queued.work_left = work.get(queued.request, 0.0)
        return sorted(jobs, key=lambda queued: self._policy.key(queued, now))

    def _share(self, queued: Queued) -> float:
        share = self._costs.share_s(queued.segments)
        return float(queued.tokens) if share is None else share

    def _take_number(self) -> int:
        self._next_number += 1
        return self._next_number - 1

    # ---- looking ahead

    def estimates(self, now: float) -> dict[int, Estimate]:
        """What to tell each request that has jobs here, if nothing else came: the ticks to come, in bounds."""
        queued = self._in_order(self._queued.values(), now)
        unbegun: dict[int, int] = {}  # of each request, in order
        positions: dict[int, int] = {}
        for ahead, job in enumerate(job for job in queued if not job.begun):
            positions.setdefault(job.request, ahead)
            unbegun[job.request] = unbegun.get(job.request, 0) + 1
        done = self._finish_times(queued)
        requests = dict.fromkeys(job.request for job in (*self._decoding.values(), *self._finished.values(), *queued))
        return {request: Estimate(positions.get(request, 0), done.get(request)) for request in requests}

    def backlog_s(self, now: float) -> float | None:
        """Seconds until everything is done that is here now; None while speeds are not known."""
        times = [estimate.seconds for estimate in self.estimates(now).values()]
        known = [seconds for seconds in times if seconds is not None]
        return max(known, default=0.0) if len(known) == len(times) else None

    def _finish_times(self, queued: Sequence[Queued]) -> dict[int, float]:
        """Seconds until each request's last image is decoded. Nothing while speeds are not known.

        Goes from one job's end to the next, not from tick to tick: who steps changes only then.
        """
        costs = self._costs
        if any(costs.share_s(job.segments) is None for job in queued):
            return {}
        clock = decoder = 0.0
        done: dict[int, float] = {}

        def decode(job: Queued) -> None:
            nonlocal decoder
            decoder = max(decoder, clock) + costs.decode_s(job.job.width * job.job.height)
            done[job.request] = max(done.get(job.request, 0.0), decoder)

        for job in (*self._decoding.values(), *self._finished.values()):
            decode(job)
        waiting, running = deque(queued), dict[int, int]()  # running: steps left by job
        jobs = {job.job.job_id: job for job in queued}
        encoded = {ids for job in queued if job.begun for ids in _prompts(job.job)}
        while waiting or running:
            tokens = sum(jobs[job_id].tokens for job_id in running)
            passed_over: list[Queued] = []
            while waiting and tokens < self.token_budget and len(passed_over) < _LOOK_AHEAD:
                job = waiting.popleft()
                if running and tokens + job.tokens > self.token_budget:
                    passed_over.append(job)
                    continue
                running[job.job.job_id] = job.remaining
                tokens += job.tokens
                new = set(_prompts(job.job)) - encoded
                clock += costs.encode_s(sum(map(len, new)))
                encoded |= new
            waiting.extendleft(reversed(passed_over))
            ticks = min(running.values())
            clock += ticks * (costs.base_s() + sum(self._share(jobs[job_id]) for job_id in running))
            for job_id in list(running):
                running[job_id] -= ticks
                if running[job_id] == 0:
                    del running[job_id]
                    decode(jobs[job_id])
        return done


def _prompts(job: Job) -> tuple[tuple[int, ...], ...]:
    return (job.prompt_ids,) if job.negative_ids is None else (job.prompt_ids, job.negative_ids)
