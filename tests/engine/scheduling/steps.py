"""What tests of the scheduler add to it and take from it."""

from __future__ import annotations

from engine.scheduling.scheduler import Scheduler
from engine.step import Job, Step


def add(scheduler: Scheduler, job: Job, *, tokens: int = 1, request: int | None = None, priority: int = 0) -> None:
    request = job.job_id if request is None else request
    scheduler.add(job, segments=(tokens,), request=request, priority=priority, now=0.0)


def next_step(scheduler: Scheduler, *, idle: bool = False) -> Step:
    step = scheduler.next_step(0.0, idle=idle)
    assert step is not None
    return step


def nothing_to_do(scheduler: Scheduler, *, idle: bool = False) -> bool:
    return scheduler.next_step(0.0, idle=idle) is None
