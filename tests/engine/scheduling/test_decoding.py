"""Which images the decoder gets, and when: no more than it needs, and never too few."""

from __future__ import annotations

import random

import pytest

from engine.scheduling.cost import CostModel
from engine.scheduling.scheduler import Scheduler
from tests.engine.scheduling.arrivals import BUDGET, SIZES, TEXT, arrival
from tests.engine.scheduling.steps import add, next_step, nothing_to_do
from tests.virtual_ranks import Arrival, VirtualRanks, make_costs, make_job

SLOW_DECODE = 5e-6  # seconds a pixel: an image of 1024² is decoded in 5.2 s, and denoised once in 0.1 s
SMALL, LARGE = 16, 4096  # tokens of 64² and 1024²


def run(arrivals: list[Arrival], decode: float) -> VirtualRanks:
    costs = make_costs(decode=decode)
    ranks = VirtualRanks(Scheduler(BUDGET, costs=costs, max_decoding=32), costs)
    ranks.run(arrivals)
    return ranks


def latencies(ranks: VirtualRanks, arrivals: list[Arrival]) -> list[float]:
    return [ranks.decoded_at[one.job.job_id] - one.at for one in arrivals]


@pytest.mark.parametrize("at", [0.0, 0.5, 3.0, 30.0])
def test_a_small_image_behind_sixteen_large_ones_waits_for_the_one_that_is_decoded(at: float) -> None:
    large = [arrival(job_id, at=0.0, tokens=LARGE, steps=1) for job_id in range(16)]
    small = arrival(16, at=at, tokens=SMALL, steps=1)
    ranks = run([*large, small], SLOW_DECODE)
    assert ranks.decoded_at[16] - at < 1.1 * ranks.longest_decode_s + 4 * ranks.longest_step_s
    assert max(ranks.decoded_at.values()) < 0.3 + 16.01 * ranks.longest_decode_s  # the large ones lost nothing by it


def test_smaller_images_are_decoded_first_and_equal_ones_in_turn() -> None:
    sizes = (SIZES[3], SIZES[2], SIZES[1], SIZES[1], SIZES[0])
    ranks = run([arrival(job_id, at=0.0, tokens=size, steps=1) for job_id, size in enumerate(sizes)], SLOW_DECODE)
    assert sorted(ranks.decoded_at, key=ranks.decoded_at.__getitem__) == [0, 4, 2, 3, 1]  # 0 had come alone


@pytest.mark.parametrize("decode", [1e-8, 1e-7, 1e-6, SLOW_DECODE])
def test_the_decoder_has_something_to_do_while_images_are_ready(decode: float) -> None:
    for seed in range(40):
        draw = random.Random(seed)
        mix = [
            arrival(job_id, at=draw.uniform(0, 3), tokens=draw.choice((SMALL, *SIZES)), steps=draw.choice((1, 4, 8)))
            for job_id in range(30)
        ]
        ranks = run(mix, decode)
        assert ranks.longest_dry_s < 1.5 * ranks.longest_step_s + 0.05, seed


@pytest.mark.parametrize(("tokens", "decode"), [(LARGE, SLOW_DECODE), (LARGE, 2e-8), (256, 1e-6)])
def test_of_equal_images_the_decoder_makes_as_many_a_second_as_it_can(tokens: int, decode: float) -> None:
    ranks = run([arrival(job_id, at=0.0, tokens=tokens, steps=1) for job_id in range(50)], decode)
    longest = max(50 * ranks.longest_decode_s, 50 / (BUDGET // (tokens + TEXT)) * ranks.longest_step_s)
    assert max(ranks.decoded_at.values()) < longest + 3 * ranks.longest_step_s + ranks.longest_decode_s


def test_the_decoder_is_given_more_at_once_the_shorter_it_takes() -> None:
    given = {}
    for decode in (1e-9, 1e-5, 1e-3):
        scheduler = Scheduler(BUDGET, costs=make_costs(decode=decode), max_decoding=9)
        for job_id in range(20):
            add(scheduler, make_job(job_id, steps=1))
        given[decode] = len(next_step(scheduler).decode)
        assert nothing_to_do(scheduler)
    assert given == {1e-9: 9, 1e-5: 7, 1e-3: 1}  # of 64², each in 4 µs, 41 ms and 4 s


def test_while_no_speed_is_known_one_image_waits_behind_the_one_that_is_decoded() -> None:
    scheduler = Scheduler(BUDGET, costs=CostModel(), max_decoding=9)
    for job_id in range(5):
        add(scheduler, make_job(job_id, steps=1))
    assert next_step(scheduler).decode == (0, 1)
    scheduler.decoded(0, 1.0)
    assert next_step(scheduler).decode == (2,)


def test_images_go_to_a_decoder_that_would_run_dry_before_a_long_step_and_not_after_it() -> None:
    scheduler = Scheduler(BUDGET, costs=make_costs(decode=1e-4), max_decoding=9)
    for job_id in range(3):
        add(scheduler, make_job(job_id, steps=1))
    assert next_step(scheduler).decode == (0,)  # which takes 0.4 s, as each of them
    add(scheduler, make_job(3, steps=9), tokens=40000)  # 0.98 s a step
    before, step = next_step(scheduler), next_step(scheduler)
    assert (before.denoise, before.decode) == ((), (1, 2))
    assert (step.denoise, step.decode) == ((3,), ())


def test_a_decoder_that_is_slower_than_thought_is_not_given_ever_more() -> None:
    scheduler = Scheduler(BUDGET, costs=make_costs(decode=1e-4), max_decoding=9)
    for job_id in range(6):
        add(scheduler, make_job(job_id, steps=1))
    add(scheduler, make_job(6, steps=200))
    given = [len(next_step(scheduler).decode)]
    for second in range(1, 100):
        step = scheduler.next_step(float(second), idle=False)
        assert step is not None
        given.append(len(step.decode))
    assert sum(given) == 2
