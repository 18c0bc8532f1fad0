"""The seconds of work ahead, by which routers compare engines: how true they are, and what asking for them costs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduling.cost import CostModel
from engine.scheduling.scheduler import Scheduler
from engine.step import Step
from tests.engine.scheduling.arrivals import BUDGET, SIZES, arrival
from tests.engine.scheduling.steps import add, next_step
from tests.engine.scheduling.test_long_queues import lines_run
from tests.virtual_ranks import Arrival, VirtualRanks, make_costs, make_job


@st.composite
def queues(draw: st.DrawFn) -> list[Arrival]:
    jobs = draw(st.lists(st.tuples(st.sampled_from(SIZES), st.integers(0, 50), st.booleans()), min_size=1, max_size=50))
    return [
        arrival(job_id, at=0.0, tokens=tokens, steps=steps, guided=guided and steps > 0, request=job_id // 3)
        for job_id, (tokens, steps, guided) in enumerate(jobs)
    ]


@settings(max_examples=40)
@given(queue=queues(), decode=st.sampled_from([1e-8, 1e-7, 2e-6]), in_turn=st.booleans())
def test_it_is_at_every_step_the_time_until_all_is_decoded(queue: list[Arrival], decode: float, in_turn: bool) -> None:
    costs = make_costs(decode=decode)
    scheduler = Scheduler(BUDGET, costs=costs, max_decoding=32, decodes_in_turn=in_turn)
    said: list[tuple[float, float | None]] = []

    def ask(_: Step, now: float) -> None:
        if now > 0.0:  # when all have come
            said.append((now, scheduler.backlog_s(now)))

    ranks = VirtualRanks(scheduler, costs, on_step=ask)
    ranks.run(queue)
    end = max(ranks.decoded_at.values())
    for now, backlog_s in said:
        assert backlog_s == pytest.approx(end - now, rel=0.05, abs=2 * ranks.longest_step_s + ranks.longest_decode_s)
    assert scheduler.backlog_s(end) == 0.0


@given(queue=queues())
def test_it_is_not_known_before_speeds_are_and_nothing_takes_no_time(queue: list[Arrival]) -> None:
    scheduler = Scheduler(BUDGET, costs=CostModel())
    assert scheduler.backlog_s(0.0) == 0.0
    for each in queue:
        scheduler.add(each.job, segments=each.segments, request=each.request, now=0.0)
        assert scheduler.backlog_s(0.0) is None
    scheduler.costs = make_costs()
    backlog_s = scheduler.backlog_s(0.0)
    assert backlog_s is not None
    assert backlog_s > 0.0
    for each in queue:
        scheduler.cancel(each.job.job_id)
    assert scheduler.backlog_s(0.0) == 0.0


def test_it_counts_down_while_steps_are_done_and_not_while_they_are_late() -> None:
    costs = make_costs(fixed=1.0, per_token=0.0, per_pair=0.0, encode=0.0, decode=2 / 64**2)
    scheduler = Scheduler(token_budget=100, costs=costs)
    for job_id in range(2):
        add(scheduler, make_job(job_id, steps=2), tokens=100)
    assert [scheduler.backlog_s(now) for now in (0.0, 60.0)] == pytest.approx([4 + 2, 4 + 2])  # no ranks
    next_step(scheduler)
    assert [scheduler.backlog_s(now) for now in (0.0, 0.5, 1.0, 60.0)] == pytest.approx([6, 5.5, 5, 5])
    scheduler.reset()
    assert scheduler.backlog_s(90.0) == pytest.approx(6)


def test_what_the_decoder_has_counts_down_by_itself() -> None:
    costs = make_costs(fixed=1.0, per_token=0.0, per_pair=0.0, encode=0.0, decode=4 / 64**2)
    scheduler = Scheduler(token_budget=100, costs=costs)
    add(scheduler, make_job(0, steps=1), tokens=100)
    assert next_step(scheduler).decode == (0,)
    assert [scheduler.backlog_s(now) for now in (1.0, 3.0, 9.0)] == pytest.approx([4, 2, 0])
    scheduler.cancel(0)
    assert scheduler.backlog_s(1.0) == pytest.approx(4)  # it is decoded all the same
    scheduler.decoded(0, 6.0)
    assert scheduler.backlog_s(6.0) == 0.0


def test_asking_again_costs_nothing_however_long_the_queue_is() -> None:
    """Every step has made an estimate, which its progress tells."""
    scheduler = Scheduler(BUDGET, costs=make_costs())
    for job_id in range(640):
        one = arrival(job_id, at=0.0, tokens=SIZES[job_id % 4], steps=8)
        scheduler.add(one.job, segments=one.segments, request=job_id // 10, now=0.0)
    next_step(scheduler)
    assert scheduler.estimate(0, 0.0) is not None
    assert lines_run(lambda: scheduler.backlog_s(0.5)) < 20
