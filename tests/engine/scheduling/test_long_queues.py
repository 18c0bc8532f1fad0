"""What scheduling costs while many requests wait."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import engine
from engine.scheduling.scheduler import Scheduler
from engine.step import Step
from tests.engine.scheduling.arrivals import BUDGET, SIZES, arrival
from tests.virtual_ranks import make_costs

ENGINE = str(Path(engine.__file__).parent)


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of the engine's Python `work` runs: the same on a slow machine as on a fast one."""
    lines = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    def begin(frame: FrameType, event: str, _: object) -> Any:
        return count if frame.f_code.co_filename.startswith(ENGINE) else None

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


def cost_of_a_queue(queued: int) -> tuple[int, int, int]:
    """Lines run for a step, for an estimate after it, and for those of ten more requests."""
    draw = random.Random(0)
    scheduler = Scheduler(BUDGET, costs=make_costs())
    for job_id in range(queued):
        one = arrival(job_id, at=0.0, tokens=draw.choice(SIZES), steps=draw.randint(1, 50))
        scheduler.add(one.job, segments=one.segments, request=job_id // 4, now=0.0)
    steps: list[Step | None] = []
    step = lines_run(lambda: steps.append(scheduler.next_step(1.0, idle=False)))
    assert steps[0] is not None
    estimate = lines_run(lambda: scheduler.estimate(0, 1.0))
    others = lines_run(lambda: [scheduler.estimate(request, 1.0) for request in range(1, 11)])
    return step, estimate, others


def test_a_long_queue_stays_cheap() -> None:
    """A step looks at each job a few times, an estimate at some of them for each of the steps ahead, and further
    estimates of an unchanged queue are looked up."""
    short, long = cost_of_a_queue(256), cost_of_a_queue(2560)
    print(f"lines run for a step, an estimate, ten more: {short} for 256 jobs, {long} for 2560")
    for queued, (step, _, others) in ((256, short), (2560, long)):
        assert queued / 10 < step < 30 * queued
        assert others < 200
    assert short[1] < 400 * 256
    assert long[1] < 64 * short[1]  # of ten times as many jobs; each step looking at every job would make it 100
