"""The jobs under way whose steps differ: what they hold of the memory, and which take a step that runs no block. Plain
Python: no torch, no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.scheduling.policy import QueuedJob


@dataclass(frozen=True)
class StateRoom:
    """How many bytes of each rank the state of jobs may take beside a step of the whole token budget, and how many a
    packed token of a step takes."""

    bytes: int
    token_bytes: float


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

    def may_begin(self, queued: QueuedJob, held: int) -> bool:
        """Whether there is room for what a job will hold beside so many bytes. Where nothing is held, there is."""
        return self.room is None or not held or held + queued.state_bytes <= self.room.bytes

    def lost_tokens(self, held: int) -> int:
        """Return by how many packed tokens a step is to be smaller, where so many bytes are more than there is room
        for."""
        if self.room is None or held <= self.room.bytes:
            return 0
        return math.ceil((held - self.room.bytes) / self.room.token_bytes)
