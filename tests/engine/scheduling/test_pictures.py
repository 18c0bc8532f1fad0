"""Pictures that jobs begin from: encoded with the first job, forgotten with the last; and jobs that run no steps."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from engine.scheduling.outlook import Estimate
from engine.scheduling.scheduler import Scheduler
from engine.step import Picture, Step
from tests.engine.scheduling.arrivals import BUDGET, SIZES, arrival
from tests.engine.scheduling.steps import add, next_step, nothing_to_do
from tests.virtual_ranks import Arrival, VirtualRanks, make_costs, make_job

SMALL = Picture(100, width=64, height=64)
OTHER = Picture(101, width=64, height=64, masked=True)
LARGE = Picture(102, width=2048, height=2048)


def started(step: Step) -> list[int]:
    return [job.job_id for job in step.start]


def test_images_of_a_picture_share_one_encoding_and_it_is_forgotten_with_the_start_of_the_last() -> None:
    scheduler = Scheduler(token_budget=2)
    for job_id in range(3):
        add(scheduler, make_job(job_id, steps=1, picture=SMALL), request=0)
    first, second = next_step(scheduler), next_step(scheduler)
    assert (started(first), first.encode, first.forget) == ([0, 1], (SMALL,), ())
    assert (started(second), second.encode, second.forget) == ([2], (), (100,))


def test_a_picture_of_one_image_is_encoded_and_forgotten_in_one_step() -> None:
    scheduler = Scheduler(token_budget=9)
    add(scheduler, make_job(0, picture=SMALL))
    add(scheduler, make_job(1))
    step = next_step(scheduler)
    assert (started(step), step.encode, step.forget) == ([0, 1], (SMALL,), (100,))


def test_a_picture_whose_last_images_are_cancelled_is_forgotten_at_once_and_never_encoded_if_it_was_not() -> None:
    scheduler = Scheduler(token_budget=1)
    for job_id, picture in enumerate((SMALL, SMALL, OTHER)):
        add(scheduler, make_job(job_id, picture=picture))
    assert next_step(scheduler).encode == (SMALL,)
    for job_id in range(3):
        scheduler.cancel(job_id)
    assert next_step(scheduler) == Step(number=1, release=(0,), forget=(100,))
    assert nothing_to_do(scheduler)
    add(scheduler, make_job(3, picture=SMALL))
    assert next_step(scheduler).encode == (SMALL,)


def test_a_picture_may_be_all_that_a_step_is_made_for() -> None:
    scheduler = Scheduler(token_budget=1)
    for job_id in range(2):
        add(scheduler, make_job(job_id, steps=1, picture=SMALL))
    next_step(scheduler)
    scheduler.decoded(0, 0.0)
    scheduler.cancel(1)
    assert next_step(scheduler) == Step(number=1, forget=(100,))
    assert nothing_to_do(scheduler)


def test_pictures_encoded_in_a_step_are_bounded_and_do_not_hold_up_what_runs() -> None:
    scheduler = Scheduler(token_budget=100, picture_budget=2 * SMALL.pixels)
    add(scheduler, make_job(0, steps=9))
    next_step(scheduler)
    pictures = [SMALL, SMALL, OTHER, LARGE, Picture(103, 64, 64), None]
    for job_id, picture in enumerate(pictures, start=1):
        add(scheduler, make_job(job_id, steps=9, picture=picture))
    steps = [next_step(scheduler) for _ in range(3)]
    assert [started(step) for step in steps] == [[1, 2, 3, 6], [4], [5]]
    assert [len(step.denoise) for step in steps] == [5, 6, 7]


def test_ranks_that_were_lost_encode_pictures_again() -> None:
    scheduler = Scheduler(token_budget=1)
    for job_id in range(2):
        add(scheduler, make_job(job_id, picture=SMALL))
    assert next_step(scheduler).encode == (SMALL,)
    scheduler.reset()
    assert next_step(scheduler) == Step(
        number=0, start=(make_job(0, picture=SMALL),), denoise=(0,), encode=(SMALL,), forget=()
    )
    scheduler.reset()
    scheduler.cancel(0)
    scheduler.cancel(1)
    assert nothing_to_do(scheduler)


# ---- jobs of no steps


def test_a_job_of_no_steps_starts_whatever_the_budget_and_goes_to_the_decoder() -> None:
    scheduler = Scheduler(token_budget=10)
    add(scheduler, make_job(0, steps=3), tokens=10)
    add(scheduler, make_job(1, steps=0, picture=SMALL), tokens=500)
    step = next_step(scheduler)
    assert (started(step), step.denoise, step.decode) == ([1, 0], (0,), (1,))
    assert (step.encode, step.forget) == ((SMALL,), (100,))
    assert scheduler.images_to_decode() == (0, 1)


def test_a_step_is_made_for_nothing_but_jobs_of_no_steps() -> None:
    scheduler = Scheduler(token_budget=10, max_decoding=1)
    jobs = [make_job(job_id, steps=0, picture=SMALL) for job_id in range(2)]
    for job in jobs:
        add(scheduler, job)
    assert scheduler.images_to_decode() == (0, 0)
    assert next_step(scheduler) == Step(number=0, start=tuple(jobs), decode=(0,), encode=(SMALL,), forget=(100,))
    assert nothing_to_do(scheduler)
    assert scheduler.images_to_decode() == (1, 1)
    scheduler.decoded(0, 0.0)
    assert next_step(scheduler) == Step(number=1, decode=(1,))


def test_jobs_of_no_steps_hold_places_too_and_are_released_when_cancelled() -> None:
    scheduler = Scheduler(token_budget=100, max_begun=2, max_decoding=1)
    for job_id in range(3):
        add(scheduler, make_job(job_id, steps=0, picture=SMALL))
    assert started(next_step(scheduler)) == [0, 1]
    assert nothing_to_do(scheduler)
    scheduler.cancel(1)
    step = next_step(scheduler)
    assert (started(step), step.release, step.forget) == ([2], (1,), (100,))


def test_a_job_of_no_steps_that_runs_alone_has_the_ranks_to_itself() -> None:
    scheduler = Scheduler(token_budget=100)
    add(scheduler, make_job(0, steps=2))
    add(scheduler, make_job(1, steps=0, picture=SMALL))
    scheduler.reset(alone={1})
    assert nothing_to_do(scheduler)
    step = next_step(scheduler, idle=True)
    assert (started(step), step.denoise, step.decode) == ([1], (), (1,))
    assert next_step(scheduler).denoise == (0,)


# ---- time


def test_seconds_count_the_encoding_of_a_picture_once_and_the_steps_that_are_run() -> None:
    costs = make_costs(fixed=1.0, per_token=0.0, per_pair=0.0, encode=0.0, decode=2 / 64**2, picture=3 / 64**2)
    scheduler = Scheduler(token_budget=100, costs=costs)
    for job_id, steps in ((0, 2), (1, 2), (2, 0)):
        add(scheduler, make_job(job_id, steps=steps, picture=SMALL), tokens=50, request=0)
    # the picture is encoded in 3 s, in a step of one second more; then three images are decoded in 2 s each
    assert scheduler.estimate(0, 0.0) == Estimate(0, pytest.approx(3 + 1 + 3 * 2))
    assert scheduler.backlog_s(0.0) == pytest.approx(10)
    assert scheduler.next_step(0.0, idle=True) is not None
    assert scheduler.estimate(0, 1.0) == Estimate(0, pytest.approx(9))


def test_a_picture_that_is_still_to_be_encoded_counts_as_work_until_it_is() -> None:
    costs = make_costs(fixed=1.0, per_token=0.0, per_pair=0.0, picture=3 / 64**2)
    scheduler = Scheduler(token_budget=1, costs=costs)
    add(scheduler, make_job(0, steps=2, picture=SMALL))
    add(scheduler, make_job(1, steps=2, picture=SMALL))
    add(scheduler, make_job(2, steps=4))
    assert next_step(scheduler).denoise == (2,)  # 4 s, and 5 s
    assert next_step(scheduler, idle=True).denoise == (2,)
    scheduler.cancel(2)
    assert next_step(scheduler).denoise == (0,)
    add(scheduler, make_job(3, steps=3))
    assert [next_step(scheduler).denoise for _ in range(3)] == [(0,), (1,), (1,)]  # 2 s, and 3 s


def test_estimates_with_pictures_are_as_good_as_those_without() -> None:
    wrong_by: list[float] = []
    for seed in range(60):
        draw = random.Random(seed)
        mix = [
            arrival(
                job_id,
                at=draw.uniform(0, 1),
                tokens=draw.choice(SIZES),
                steps=draw.choice((0, 3, 8, 20)),
                request=job_id // 2,
                picture_id=draw.choice((None, 1000 + job_id // 2)),
            )
            for job_id in range(draw.randint(2, 10))
        ]
        costs = make_costs(decode=draw.choice((1e-7, 1e-6)), picture=draw.choice((1e-7, 1e-6)))
        scheduler = Scheduler(BUDGET, costs=costs, max_decoding=32, decodes_in_turn=draw.random() < 0.3)
        wrong_by += errors_of_estimates(scheduler, mix)
    print(f"{len(wrong_by)} estimates, wrong by a factor of {mean(wrong_by):.3f}, {max(wrong_by):.2f} at most")
    assert len(wrong_by) > 500
    assert mean(wrong_by) < 1.1


def errors_of_estimates(scheduler: Scheduler, mix: list[Arrival]) -> list[float]:
    """By which factor each estimate was wrong."""
    estimates: list[tuple[float, int, float]] = []

    last = max(one.at for one in mix)

    def ask(step: Step, now: float) -> None:
        for request in {one.request for one in mix}:
            if now > last and (estimate := scheduler.estimate(request, now)) is not None:
                assert estimate.seconds is not None
                estimates.append((now, request, estimate.seconds))

    ranks = VirtualRanks(scheduler, scheduler.costs, ask)
    ranks.run(mix)
    done_at: dict[int, float] = {}
    for one in mix:
        done_at[one.request] = max(done_at.get(one.request, 0.0), ranks.decoded_at[one.job.job_id])
    longest = 2 * max(ranks.longest_step_s, ranks.longest_decode_s)
    truths = [(done_at[request] - now, seconds) for now, request, seconds in estimates]
    return [max(seconds / truth, truth / seconds) for truth, seconds in truths if truth > longest]
