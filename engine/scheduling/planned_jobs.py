"""The jobs under way whose steps differ: what they hold of the memory, and which take a step that runs no block. Plain
Python: no torch, no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.scheduling.policy import QueuedJob

_MOST_LOST = 1 / 4  # of the tokens of a step, for the state of jobs


@dataclass(frozen=True)
class StateRoom:
    """How many bytes of each rank there are for the state of jobs beside a step of the whole token budget, and how many
    a packed token of a step takes."""

    bytes: int
    token_bytes: float

    def tokens(self, held: int) -> int:
        """Return how many packed tokens more than the budget a step has room for beside so many bytes of state: fewer
        if negative."""
        return math.floor((self.bytes - held) / self.token_bytes)


class PlannedJobs:
    """Keeps the jobs that have begun and have a plan, until they go to the decoder. room: None where it is not known,
    and then there is room for all."""

    def __init__(self) -> None:
        self.room: StateRoom | None = None
        self._begun: dict[int, QueuedJob] = {}

    def begin(self, queued: QueuedJob) -> None:
        """Note that a job begins; one without a plan is ignored."""
        if queued.plan is not None:
            self._begun[queued.job.job_id] = queued

    def end(self, job_id: int) -> None:
        """Note that a job keeps nothing any more. Unknown ones are ignored."""
        self._begun.pop(job_id, None)

    def clear(self) -> None:
        """Note that none is under way."""
        self._begun.clear()

    def free(self, request: int | None = None) -> list[QueuedJob]:
        """List the jobs whose next step runs no block: it takes next to no time, whoever else waits. request: whose
        jobs, None for everybody's."""
        return [
            queued
            for queued in self._begun.values()
            if queued.steps_left and not queued.work.tokens and request in (None, queued.request)
        ]

    @property
    def held(self) -> int:
        """The bytes that they hold of each rank."""
        return sum(queued.state_bytes for queued in self._begun.values())

    def may_begin(self, queued: QueuedJob, held: int, token_budget: int) -> bool:
        """Whether a job may begin where so many bytes are held: where nothing is, or steps become smaller by a part of
        the token budget at most. Else a rank whose steps may take all there is would save those of one at a time."""
        if self.room is None or not held:
            return True
        return self.lost_tokens(held + queued.state_bytes) <= _MOST_LOST * token_budget

    def lost_tokens(self, held: int) -> int:
        """Return by how many packed tokens a step is to be smaller, where so many bytes are more than there is room
        for."""
        return 0 if self.room is None else max(0, -self.room.tokens(held))

    def must_wait(self, queued: QueuedJob, held: int, token_budget: int) -> bool:
        """Whether a job, even alone in a step, has too little room beside so many bytes that are held, and another that
        holds some of them can go on and give them back."""
        return (
            bool(held)
            and not self._fits(queued, held, token_budget)
            and any(
                other is not queued and other.state_bytes and other.steps_left and self._fits(other, held, token_budget)
                for other in self._begun.values()
            )
        )

    def _fits(self, queued: QueuedJob, held: int, token_budget: int) -> bool:
        """Whether a step of this job alone has room beside what others hold, of so many bytes in all."""
        if self.room is None:
            return True
        others = held - queued.state_bytes if queued.job.job_id in self._begun else held
        return queued.work.tokens <= token_budget + self.room.tokens(others)
