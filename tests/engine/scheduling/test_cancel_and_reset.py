"""Jobs that are cancelled, start again after a reset, or run alone."""

from __future__ import annotations

from engine.scheduling.scheduler import Scheduler
from engine.step import Adapter, Step
from tests.engine.scheduling.steps import add, next_step, nothing_to_do
from tests.virtual_ranks import make_job


def test_a_cancelled_job_is_released_if_it_has_begun_and_otherwise_never_sent() -> None:
    scheduler = Scheduler(token_budget=1)
    add(scheduler, make_job(0))
    add(scheduler, make_job(1))
    next_step(scheduler)
    for job_id in (0, 1, 99):
        scheduler.cancel(job_id)
    assert next_step(scheduler) == Step(number=1, release=(0,))
    assert nothing_to_do(scheduler)


def test_a_job_cancelled_while_it_waits_for_the_decoder_is_released() -> None:
    scheduler = Scheduler(token_budget=2, max_decoding=1)
    for job_id in range(2):
        add(scheduler, make_job(job_id, steps=1))
    assert next_step(scheduler).decode == (0,)
    scheduler.cancel(1)
    assert next_step(scheduler) == Step(number=1, release=(1,))


def test_a_job_cancelled_in_the_decoder_keeps_its_place_there_and_is_forgotten() -> None:
    scheduler = Scheduler(token_budget=2, max_decoding=1)
    for job_id in range(2):
        add(scheduler, make_job(job_id, steps=1))
    next_step(scheduler)
    scheduler.cancel(0)
    assert scheduler.estimate(0, 0.0) is None
    assert nothing_to_do(scheduler)
    scheduler.decoded(0, 0.0)
    assert next_step(scheduler).decode == (1,)


def test_after_a_reset_everything_starts_again_in_its_old_order() -> None:
    scheduler = Scheduler(token_budget=3, max_decoding=1)
    for job_id, steps in ((0, 1), (1, 1), (2, 2), (3, 5)):
        add(scheduler, make_job(job_id, steps=steps), priority=steps == 5)
    assert next_step(scheduler).decode == (0,)
    scheduler.cancel(1)
    scheduler.reset()
    step = next_step(scheduler)
    assert (step.number, [job.job_id for job in step.start], step.release) == (0, [3, 0, 2], ())
    scheduler.reset()
    scheduler.cancel(3)
    assert next_step(scheduler).decode == (0,)
    scheduler.cancel(0)
    scheduler.reset()
    assert [job.job_id for job in next_step(scheduler).start] == [2]


def test_requests_that_run_alone_go_one_after_the_other_and_let_no_other_start() -> None:
    scheduler = Scheduler(token_budget=100)
    add(scheduler, make_job(1, steps=1), priority=9)
    for job_id in (2, 3):
        add(scheduler, make_job(job_id, steps=2), request=7)
    add(scheduler, make_job(4, steps=1))
    scheduler.reset(alone={7, 4})

    assert nothing_to_do(scheduler)
    alone = next_step(scheduler, idle=True)
    assert (alone.denoise, alone.decode) == ((4,), (4,))
    assert nothing_to_do(scheduler)
    scheduler.decoded(4, 0.0)
    assert next_step(scheduler, idle=True).denoise == (2, 3)
    assert nothing_to_do(scheduler)
    assert next_step(scheduler, idle=True).decode == (2, 3)
    assert next_step(scheduler).denoise == (1,)


def test_a_reset_can_leave_requests_alone() -> None:
    scheduler = Scheduler(token_budget=100)
    for job_id in range(3):
        add(scheduler, make_job(job_id))
    next_step(scheduler)
    scheduler.reset(alone={2})
    assert nothing_to_do(scheduler)
    assert next_step(scheduler, idle=True).denoise == (2,)
    scheduler.cancel(2)
    assert next_step(scheduler).denoise == (0, 1)


def test_adapters_wait_for_a_job_that_runs_alone() -> None:
    scheduler = Scheduler(token_budget=100)
    add(scheduler, make_job(0, steps=2))
    scheduler.reset(alone={0})
    assert next_step(scheduler, idle=True).denoise == (0,)
    scheduler.load(Adapter(0, "a"))
    assert nothing_to_do(scheduler)
    assert next_step(scheduler, idle=True).load == (Adapter(0, "a"),)
