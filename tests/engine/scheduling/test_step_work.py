"""What steps have to do and have done, and what is learned from it."""

from __future__ import annotations

import pytest

from engine.scheduling.cost import NO_WORK, CostModel, Work
from engine.scheduling.job_work import work_of
from engine.scheduling.step_work import DoneWork, StepWork
from engine.step import Job, Step, StepTimes
from engine.step_cache.settings import StepCache
from tests.virtual_ranks import make_job

BLOCKS = StepCache("blocks", warmup_steps=1, max_consecutive=2, order=1, max_cached=200)
VELOCITY = StepCache("velocity", warmup_steps=1, max_consecutive=1, order=0, max_cached=200)


def steps_of(work: StepWork, job: Job, blocks: list[tuple[int, ...]], first: int = 0) -> list[DoneWork]:
    """Run the steps of a job alone, in which its halves run so many blocks."""
    done = []
    for number, ran in enumerate(blocks, first):
        step = Step(number, denoise=(job.job_id,))
        work.sent(step)
        done.append(work.done(step, StepTimes(blocks_run=((job.job_id, ran),))))
    return done


def test_jobs_without_a_plan_do_all_that_they_have_to() -> None:
    work = StepWork(CostModel(10), blocks=10)
    work.add(make_job(0, guided=True), (30, 20))
    work.add(make_job(1), (40,))
    step = Step(0, denoise=(0, 1, 7))  # the last of which was cancelled
    assert work.sent(step) == Work.of((30, 20, 40))
    assert work.done(step, StepTimes()) == DoneWork(Work.of((30, 20, 40)), images=2, blocks=30, saved=0)
    assert work.knows((0, 1))
    work.forget(1)
    assert not work.knows((0, 1))
    assert work.sent(Step(1)) == NO_WORK


def test_a_step_has_to_do_all_it_may_and_has_done_what_the_ranks_tell() -> None:
    work = StepWork(CostModel(10), blocks=10)
    work.add(make_job(0, steps=4, guided=True, cache=BLOCKS), (30, 20))
    work.add(make_job(1, steps=4, cache=VELOCITY), (40,))
    first, second, third = (Step(number, denoise=(0, 1)) for number in range(3))
    assert work.sent(first) == Work.of((30, 20, 40))
    assert work.sent(second) == Work.of((30, 20))  # the other's is forecast
    work.forget(1)  # cancelled since
    assert work.done(first, StepTimes(blocks_run=((0, (10, 10)), (1, (10,))))).work == Work.of((30, 20, 40))
    done = work.done(second, StepTimes(blocks_run=((0, (1, 10)), (1, (0,)))))
    assert done == DoneWork(Work(3 + 20, 90 + 400, 1.0), images=1, blocks=11, saved=9 + 10)
    assert work.sent(third) == Work.of((30, 20))
    done = work.done(third, StepTimes(blocks_run=((0, (1, 1)),)))
    assert done == DoneWork(Work(5, 90 + 40, 0.1), images=1, blocks=2, saved=18)
    assert work.sent(Step(3, denoise=(0,))) == Work.of((30, 20))
    assert work.done(Step(3, denoise=(0,)), StepTimes()).work == NO_WORK  # it has failed


def test_an_image_tells_what_such_images_save_if_it_was_seen_from_its_first_step_to_its_last() -> None:
    costs = CostModel(10)
    work, job = StepWork(costs, blocks=10), make_job(0, steps=6, cache=BLOCKS)
    work.add(job, (30,))
    plan = work_of(job, (30,), costs)
    assert plan is not None
    assumed = plan.share.value
    steps_of(work, job, [(10,), (1,), (1,)])
    work.start_over()  # ranks were lost
    steps_of(work, job, [(10,), (1,), (1,), (10,), (1,)])
    assert plan.share.value == assumed
    steps_of(work, job, [(10,)], first=5)
    assert plan.share.value == pytest.approx((1 + 1 + 10 + 1) / 40)
