from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduler import Scheduler
from engine.step import Job, Step


def job(job_id: int, steps: int = 2) -> Job:
    return Job(
        job_id=job_id,
        prompt_ids=(1, 2),
        negative_ids=None,
        width=64,
        height=64,
        steps=steps,
        guidance=0.0,
        mu=None,
        seed=job_id,
    )


def next_step(scheduler: Scheduler) -> Step:
    step = scheduler.next_step()
    assert step is not None
    return step


def test_a_job_starts_once_steps_as_often_as_it_asks_and_is_decoded_with_its_last_step() -> None:
    scheduler = Scheduler(token_budget=100)
    scheduler.add(job(7, steps=3), tokens=10)
    steps = [next_step(scheduler) for _ in range(3)]
    assert [step.start for step in steps] == [(job(7, steps=3),), (), ()]
    assert [step.denoise for step in steps] == [(7,), (7,), (7,)]
    assert [step.decode for step in steps] == [(), (), (7,)]
    assert scheduler.next_step() is None
    assert not scheduler.has_work()


def test_jobs_are_packed_up_to_the_budget_and_a_job_above_it_runs_alone() -> None:
    scheduler = Scheduler(token_budget=100)
    for job_id, tokens in ((0, 60), (1, 30), (2, 20), (3, 500)):
        scheduler.add(job(job_id, steps=1), tokens=tokens)
    assert next_step(scheduler).denoise == (0, 1)
    assert next_step(scheduler).denoise == (2,)
    assert next_step(scheduler).denoise == (3,)


def test_higher_priority_goes_first_and_equal_ones_in_order_of_arrival() -> None:
    scheduler = Scheduler(token_budget=1)
    for job_id, priority in ((0, 0), (1, 5), (2, 5), (3, -1)):
        scheduler.add(job(job_id, steps=1), tokens=1, priority=priority)
    assert [next_step(scheduler).denoise for _ in range(4)] == [(1,), (2,), (0,), (3,)]


def test_a_job_that_has_begun_keeps_its_place() -> None:
    scheduler = Scheduler(token_budget=1)
    scheduler.add(job(0, steps=3), tokens=1)
    next_step(scheduler)
    scheduler.add(job(1, steps=1), tokens=1)
    assert [next_step(scheduler).denoise for _ in range(3)] == [(0,), (0,), (1,)]


def test_a_cancelled_job_is_released_if_it_has_begun_and_otherwise_never_sent() -> None:
    scheduler = Scheduler(token_budget=1)
    scheduler.add(job(0), tokens=1)
    scheduler.add(job(1), tokens=1)
    next_step(scheduler)
    scheduler.cancel(0)
    scheduler.cancel(1)
    scheduler.cancel(99)
    step = next_step(scheduler)
    assert (step.start, step.denoise, step.release) == ((), (), (0,))
    assert not scheduler.has_work()


def test_cancelling_a_job_whose_last_step_was_sent_changes_nothing() -> None:
    scheduler = Scheduler(token_budget=1)
    scheduler.add(job(0, steps=1), tokens=1)
    assert next_step(scheduler).decode == (0,)
    scheduler.cancel(0)
    assert scheduler.next_step() is None


def test_what_is_ahead_counts_jobs_and_tokens_of_at_least_the_same_priority() -> None:
    scheduler = Scheduler(token_budget=10)
    scheduler.add(job(0, steps=4), tokens=10, priority=1)
    scheduler.add(job(1, steps=2), tokens=3)
    assert (scheduler.jobs_ahead(), scheduler.jobs_ahead(1), scheduler.jobs_ahead(2)) == (2, 1, 0)
    assert (scheduler.work_ahead(), scheduler.work_ahead(1), scheduler.work_ahead(2)) == (46, 40, 0)
    next_step(scheduler)
    assert scheduler.work_ahead() == 36


def test_an_empty_step_takes_a_number_like_any_other() -> None:
    scheduler = Scheduler(token_budget=10)
    scheduler.add(job(0), tokens=1)
    numbers = [next_step(scheduler).number, scheduler.empty_step().number, next_step(scheduler).number]
    assert numbers == [0, 1, 2]
    assert replace(scheduler.empty_step(), number=0) == Step(number=0)


def test_a_job_id_in_use_and_a_budget_of_nothing_are_mistakes() -> None:
    scheduler = Scheduler(token_budget=1)
    scheduler.add(job(0), tokens=1)
    with pytest.raises(ValueError, match="queued already"):
        scheduler.add(job(0), tokens=1)
    with pytest.raises(ValueError, match="positive"):
        Scheduler(token_budget=0)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_comes_and_goes_ranks_can_follow_every_step(data: st.DataObject) -> None:
    scheduler = Scheduler(token_budget=50)
    live: dict[int, int] = {}  # what a rank would hold: denoise steps left by job
    steps_of: dict[int, int] = {}
    tokens_of: dict[int, int] = {}
    cancelled: set[int] = set()
    decoded: set[int] = set()
    number = 0

    def follow(step: Step) -> None:
        nonlocal number
        assert step.number == number
        number += 1
        for started in step.start:
            assert started.job_id not in live
            live[started.job_id] = started.steps
        for job_id in step.denoise:
            assert live[job_id] > 0
            assert job_id not in cancelled
            live[job_id] -= 1
        assert len(step.denoise) <= 1 or sum(tokens_of[job_id] for job_id in step.denoise) <= 50
        for job_id in step.decode:
            assert live.pop(job_id) == 0
            decoded.add(job_id)
        for job_id in step.release:
            del live[job_id]

    for _ in range(data.draw(st.integers(0, 40))):
        action = data.draw(st.sampled_from(["add", "cancel", "step"]))
        if action == "add":
            job_id = len(steps_of)
            steps_of[job_id] = data.draw(st.integers(1, 5))
            tokens_of[job_id] = data.draw(st.integers(1, 80))
            priority = data.draw(st.integers(-1, 1))
            scheduler.add(job(job_id, steps_of[job_id]), tokens=tokens_of[job_id], priority=priority)
        elif action == "cancel" and steps_of:
            job_id = data.draw(st.integers(0, len(steps_of) - 1))
            scheduler.cancel(job_id)
            if job_id not in decoded:
                cancelled.add(job_id)
        elif (step := scheduler.next_step()) is not None:
            follow(step)
    while (step := scheduler.next_step()) is not None:
        follow(step)
    assert not live
    assert decoded == set(steps_of) - cancelled
