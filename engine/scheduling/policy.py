"""Who goes first: the jobs of the queue, and the policy that orders them. Replace `Policy` to change it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from engine.scheduling.cost import Work
from engine.scheduling.job_work import JobWork
from engine.step import Job


@dataclass(eq=False)
class QueuedJob:
    """A job from its arrival until its image is decoded. A policy reads it, only the scheduler writes it. It has more
    attributes than other classes since it is all that the scheduler knows of a job."""

    job: Job
    request: int
    priority: int
    work: Work  # of its next denoise step, at most
    prompts: dict[int, int]  # tokens of each distinct prompt, by hash
    arrived: float  # seconds
    arrival: int  # counts up with every job that comes
    steps_left: int
    plan: JobWork | None = None  # where its steps do not all have the same to do
    state_bytes: int = 0  # that it holds between steps, of each rank, beside what all do
    patience_s: float = 0.0  # how long later arrivals may pass it
    alone: bool = False  # no other request's jobs run with it
    begun: bool = False
    cancelled: bool = False  # while it was decoded

    @property
    def is_denoised(self) -> bool:
        """Whether all of its steps have been made, or it has begun and has none: then it is to be decoded."""
        return self.begun and self.steps_left == 0

    @property
    def expected(self) -> Work:
        """What its next step is expected to do."""
        return self.work if self.plan is None else self.plan.expected(self.steps_left, self.steps_left - 1)

    def be_at(self, steps_left: int) -> None:
        """Go to the step with which so many are left."""
        self.steps_left = steps_left
        if self.plan is not None and steps_left:
            self.work = self.plan.packed(steps_left)


class Policy:
    """Priority, then least work left; jobs that have waited longer than their patience go first, by arrival.

    A second of waiting counts as `waiting` seconds less work, so that equal jobs go in turn, and one that is a little
    smaller than the others does not pass all of them.

    The patience of a job is `ageing_s` and `stretch` times the work, in seconds, that was queued when it came, itself
    included. Under a load that the ranks can bear no job waits that long, and under overload high priorities still pass
    a long queue instead of joining its end. So every wait has a bound, whatever comes later. Let n jobs be queued when
    a job comes, itself included, with S denoise steps to go altogether, a job of none counting as one; let T be the
    longest step, D the longest decoding, and L the most steps of any job. Then its image is decoded after at most

        patience + (S + L + 3·n + 2) · T + (n + 3) · D + `HAND_OVER_S`     seconds,

    because past its patience only those n jobs go before it, the first of them is in every step, and the decoder has no
    more than it needs until the next one. L, the wait until one more job may begin, drops out below the limit of begun
    jobs. Jobs that run alone, after ranks died, are extra.
    """

    def __init__(self, *, ageing_s: float = 30.0, stretch: float = 2.0, waiting: float = 0.05) -> None:
        if min(ageing_s, stretch, waiting) < 0:
            raise ValueError("ageing_s, stretch and waiting must not be negative")
        self.ageing_s, self.stretch, self.waiting = ageing_s, stretch, waiting

    def patience_s(self, backlog_s: float) -> float:
        """Say for how many seconds later arrivals may pass a job that comes when `backlog_s` of work are queued."""
        return self.ageing_s + self.stretch * backlog_s

    def key(self, job: QueuedJob, work_left: float, now: float) -> tuple[float, ...]:
        """Return what jobs are sorted by, smallest first. work_left: seconds of its denoise steps and of encoding its
        picture, or tokens while no speeds are known; once these are done, seconds of its decoding."""
        if now - job.arrived >= job.patience_s:
            return (0, job.arrival)
        return (1, -job.priority, work_left + self.waiting * job.arrived, job.arrival)


Key = Callable[[QueuedJob, float], tuple[float, ...]]  # of a job that has so much work left


def ordering(policy: Policy, jobs: Collection[QueuedJob], work_left: Callable[[QueuedJob], float], now: float) -> Key:
    """Order jobs by the policy. When some run alone, one request of these goes first, then the others."""
    alone = [queued for queued in jobs if queued.alone]
    if not alone:
        key = policy.key
        return lambda queued, left: key(queued, left, now)
    first = min(alone, key=lambda queued: (not queued.begun, policy.key(queued, work_left(queued), now))).request

    def by_stage(queued: QueuedJob, left: float) -> tuple[float, ...]:
        stage = (0 if queued.request == first else 1) if queued.alone else 2
        return (stage, queued.request if stage == 1 else 0, *policy.key(queued, left, now))

    return by_stage
