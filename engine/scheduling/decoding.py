"""Which finished images go to the decoder, and when: as much as keeps it at work until more can be handed over.

The decoder works off what it has in turn, and what it has begun is not interrupted. So whatever it holds beside that
only makes urgent or small images wait that are ready a little later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.scheduling.cost import CostModel
from engine.scheduling.policy import QueuedJob

# What is with the decoder at the end of a step should last for the next one, and half of another: steps differ.
HAND_OVER_STEPS = 1.5
HAND_OVER_S = 0.25  # and for the messages between, which carry whole pictures
_DRY_S = 0.02
_MOST_UNKNOWN = 2  # images with it while its speed is not known


class Decoding:
    """Keeps the jobs that are with the decoder, in the order in which it works them off: `most` at a time."""

    def __init__(self, costs: CostModel, most: int) -> None:
        self._costs, self._most = costs, most
        self._jobs: dict[int, QueuedJob] = {}
        self._begins: dict[int, float] = {}  # about when each can be decoded, if nothing else is

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: int) -> bool:
        return job_id in self._jobs

    def jobs(self) -> list[QueuedJob]:
        """List them, that which is being decoded first."""
        return list(self._jobs.values())

    def begin(self, queued: QueuedJob, at: float) -> None:
        """Note that a job goes to the decoder with a step that ends at about `at`."""
        self._jobs[queued.job.job_id] = queued
        self._begins[queued.job.job_id] = at

    def end(self, job_id: int, now: float) -> None:
        """Note that a job's image has come, or never will: the next one begins."""
        if self._jobs.pop(job_id, None) is not None:
            del self._begins[job_id]
            for head in list(self._jobs)[:1]:
                self._begins[head] = max(now, self._begins[head])

    def cancel(self, job_id: int) -> None:
        """Note that nobody waits for a job's image any more, which is decoded all the same."""
        if job_id in self._jobs:
            self._jobs[job_id].cancelled = True

    def ends(self, now: float) -> dict[int, float]:
        """Say when each image is decoded, by job_id, in order."""
        ends: dict[int, float] = {}
        end = -math.inf
        for job_id, queued in self._jobs.items():
            ends[job_id] = end = max(now, max(end, self._begins[job_id]) + decode_s(queued, self._costs))
        return ends

    def free_at(self, now: float) -> float:
        """Say when all that it has is decoded."""
        return max(self.ends(now).values(), default=now)

    def runs_dry(self, by: float, now: float) -> bool:
        """Whether it would have nothing to do before `by`, for long enough to be worth a message."""
        return self.free_at(now) + _DRY_S < by

    def choose(self, ready: Sequence[QueuedJob], *, at: float, step_s: float, now: float) -> list[QueuedJob]:
        """Choose which of the `ready` jobs, in this order, to hand over at `at`, before another step of `step_s`."""
        known = self._costs.decode_s(1) is not None
        most = self._most if known else min(self._most, _MOST_UNKNOWN)
        lasts_until = at + HAND_OVER_STEPS * step_s + HAND_OVER_S
        free = max(at, self.free_at(now))
        count = 0
        for queued in ready:
            held = len(self) + count
            if held >= most or (held and known and free > lasts_until):
                break
            free += decode_s(queued, self._costs)
            count += 1
        return list(ready[:count])


def decode_s(queued: QueuedJob, costs: CostModel) -> float:
    """Estimate the seconds of decoding a job's image: 0 while no speed is known."""
    return costs.decode_s(queued.job.width * queued.job.height) or 0.0


def stage_work(queued: QueuedJob, costs: CostModel) -> float:
    """Reckon what is left of a job's denoise steps, or of its decoding once these are done, without encoding its
    picture: in seconds, or by what steps are compared by while no speeds are known."""
    if queued.is_denoised:
        return decode_s(queued, costs)
    if queued.plan is None:
        return queued.steps_left * costs.relative(queued.work)
    return costs.relative(queued.plan.all_left(queued.steps_left))
