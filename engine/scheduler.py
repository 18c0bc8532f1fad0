"""Which jobs step next. Plain Python: no torch, no I/O, no clock.

Jobs are packed into a tick up to a token budget, by priority and then in order of arrival. A job that has begun keeps
its place, so finished images leave early instead of everything finishing late.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.step import Job, Step


@dataclass
class _Entry:
    job: Job
    tokens: int
    priority: int
    order: int
    remaining: int
    started: bool = False


class Scheduler:
    """Turns jobs into numbered steps.

    `token_budget` bounds the packed tokens of a tick; a job larger than the budget runs alone. Tokens of a job are
    those of all its segments: text and image, twice when it is guided.
    """

    def __init__(self, token_budget: int) -> None:
        if token_budget < 1:
            raise ValueError("token_budget must be positive")
        self.token_budget = token_budget
        self._entries: dict[int, _Entry] = {}
        self._releases: list[int] = []
        self._arrivals = 0
        self._next_number = 0

    def add(self, job: Job, *, tokens: int, priority: int = 0) -> None:
        """Queue a job. Higher priority goes first; equal ones go in order of arrival."""
        if job.job_id in self._entries:
            raise ValueError(f"job {job.job_id} is queued already")
        self._entries[job.job_id] = _Entry(job, tokens, priority, self._arrivals, job.steps)
        self._arrivals += 1

    def cancel(self, job_id: int) -> None:
        """Leave the job out of every step not yet made. Unknown and finished jobs are ignored."""
        entry = self._entries.pop(job_id, None)
        if entry is not None and entry.started:
            self._releases.append(job_id)

    def jobs_ahead(self, priority: int = 0) -> int:
        """How many queued jobs would be served before a new one of this priority."""
        return sum(entry.priority >= priority for entry in self._entries.values())

    def work_ahead(self, priority: int = 0) -> int:
        """Tokens of all the denoise steps that would be done before those of a new job of this priority."""
        return sum(entry.tokens * entry.remaining for entry in self._entries.values() if entry.priority >= priority)

    def has_work(self) -> bool:
        return bool(self._entries or self._releases)

    def next_step(self) -> Step | None:
        """The next step, or None when there is nothing to do."""
        if not self.has_work():
            return None
        chosen: list[_Entry] = []
        tokens = 0
        for entry in sorted(self._entries.values(), key=lambda e: (-e.priority, e.order)):
            if chosen and tokens + entry.tokens > self.token_budget:
                continue
            chosen.append(entry)
            tokens += entry.tokens
        step = replace(
            self.empty_step(),
            start=tuple(entry.job for entry in chosen if not entry.started),
            denoise=tuple(entry.job.job_id for entry in chosen),
            release=tuple(self._releases),
        )
        self._releases = []
        finished = []
        for entry in chosen:
            entry.started = True
            entry.remaining -= 1
            if entry.remaining == 0:
                finished.append(entry.job.job_id)
                del self._entries[entry.job.job_id]
        return replace(step, decode=tuple(finished))

    def empty_step(self) -> Step:
        """A step in which nothing is done: whoever executes it shows that it can."""
        step = Step(number=self._next_number)
        self._next_number += 1
        return step
