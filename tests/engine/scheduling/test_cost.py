from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduling.cost import CostModel, Work, choose_budget

TRUE = (0.02, 2e-5, 1e-9)  # seconds, seconds a token, seconds a pair
SHAPES = [(300,), (1100,), (1100, 1100), (4200,), (4200, 4200), (300, 4200), (9000,)]


def true_s(work: Work) -> float:
    return TRUE[0] + TRUE[1] * work.tokens + TRUE[2] * work.pairs


def seconds(costs: CostModel, *segments: int) -> float:
    expected = costs.denoise_s(Work.of(segments))
    assert expected is not None
    return expected


def fitted() -> CostModel:
    costs = CostModel()
    costs.fit([(Work.of(shape), true_s(Work.of(shape))) for shape in SHAPES])
    return costs


def test_work_adds_up_and_attention_stays_in_its_segment() -> None:
    assert Work.of((3, 4)) == Work(7, 25) == Work.of([3]) + Work.of([4])


def test_nothing_is_known_before_something_was_measured() -> None:
    costs = CostModel()
    assert not costs.known
    assert (costs.denoise_s(Work(1, 1)), costs.encode_s(1), costs.decode_s(1)) == (None, None, None)
    assert costs.relative(Work.of([2000])) > costs.relative(Work.of([1000, 1000])) > 2000


def test_one_step_gives_a_rough_estimate_of_every_other() -> None:
    costs = CostModel()
    costs.correct(Work.of([4200]), 0.2)
    assert seconds(costs, 4200) == pytest.approx(0.2)
    assert seconds(costs, 4200, 4200) == pytest.approx(0.4, rel=0.1)
    assert seconds(costs, 16500) > 4 * 0.2


def test_exact_samples_give_the_exact_costs() -> None:
    costs = fitted()
    for shape in [(16,), (700, 50), (20000,)]:
        assert seconds(costs, *shape) == pytest.approx(true_s(Work.of(shape)))


@pytest.mark.parametrize("outlier", [None, 5.0, 0.2])
def test_noise_and_an_outlier_hardly_move_a_fit(outlier: float | None) -> None:
    worst = 0.0
    for seed in range(50):
        draw = random.Random(seed)
        samples = [(Work.of(shape), true_s(Work.of(shape)) * draw.uniform(0.97, 1.03)) for shape in SHAPES]
        if outlier is not None:
            place = draw.randrange(len(samples))
            samples[place] = (samples[place][0], samples[place][1] * outlier)
        costs = CostModel()
        costs.fit(samples)
        for shape in [(500,), (2000,), (4200, 1100), (8000,)]:
            ratio = seconds(costs, *shape) / true_s(Work.of(shape))
            worst = max(worst, ratio, 1 / ratio)
    assert worst < 1.25


@given(st.lists(st.tuples(st.integers(1, 10000), st.floats(1e-4, 10)), min_size=1, max_size=7))
def test_a_longer_step_is_never_thought_faster(samples: list[tuple[int, float]]) -> None:
    costs = CostModel()
    costs.fit((Work.of([tokens]), seconds) for tokens, seconds in samples)
    known = [seconds(costs, tokens) for tokens in (1, 10, 100, 1000, 10000)]
    assert min(known) >= 0
    assert all(before <= after for before, after in pairwise(known))


def test_a_lasting_change_is_followed_within_thirteen_steps_of_one_kind() -> None:
    costs = fitted()
    work = Work.of([4200])
    for _ in range(13):
        costs.correct(work, 2 * true_s(work))
    assert seconds(costs, 4200) == pytest.approx(2 * true_s(work), rel=0.05)


def test_a_lasting_change_is_followed_within_thirty_steps_of_all_kinds() -> None:
    costs, draw = fitted(), random.Random(0)
    for _ in range(30):
        work = Work.of(draw.choice(SHAPES))
        costs.correct(work, 2 * true_s(work))
    for shape in SHAPES:
        assert seconds(costs, *shape) == pytest.approx(2 * true_s(Work.of(shape)), rel=0.15)


def test_steps_that_run_teach_the_shape_of_the_costs() -> None:
    costs, draw = CostModel(), random.Random(0)
    for _ in range(300):
        work = Work.of(draw.choice(SHAPES))
        costs.correct(work, true_s(work))
    for shape in SHAPES:
        assert seconds(costs, *shape) == pytest.approx(true_s(Work.of(shape)), rel=0.15)


@pytest.mark.parametrize("outlier", [100.0, 0.01])
def test_one_outlier_moves_an_estimate_by_little(outlier: float) -> None:
    costs = fitted()
    for correct, expected in (
        (lambda factor: costs.correct(Work.of([4200]), factor * true_s(Work.of([4200]))), lambda: seconds(costs, 4200)),
        (lambda factor: costs.correct_encode(100, factor * 0.1), lambda: costs.encode_s(100)),
        (lambda factor: costs.correct_decode(100, factor * 0.1), lambda: costs.decode_s(100)),
    ):
        for _ in range(5):
            correct(1.0)
        before = expected()
        correct(outlier)
        assert before is not None
        assert expected() == pytest.approx(before, rel=0.11)


@pytest.mark.parametrize("first", [0.36, 0.03])
def test_what_comes_first_is_forgotten_if_the_next_are_otherwise(first: float) -> None:
    costs = CostModel()
    for took in (first, 0.1, 0.1, 0.1):
        costs.correct_encode(100, took)
        costs.correct_decode(100, took)
    assert costs.encode_s(100) == pytest.approx(0.1)
    assert costs.decode_s(100) == pytest.approx(0.1)


def test_a_first_measurement_that_took_longer_than_the_second_counts_no_more() -> None:
    costs = CostModel()
    costs.correct_decode(100, 0.36)
    costs.correct_decode(100, 0.1)
    assert costs.decode_s(100) == pytest.approx(0.1)


def test_decodings_of_one_size_say_little_of_those_of_another() -> None:
    costs = CostModel()
    small, large = 256 * 256, 1024 * 1024
    costs.correct_decode(small, 0.1)
    assert costs.decode_s(large) == pytest.approx(1.6)  # while there is nothing better
    for _ in range(2):
        costs.correct_decode(large, 3.2)
    assert costs.decode_s(large) == pytest.approx(3.2)
    assert costs.decode_s(small) == pytest.approx(0.1)
    assert costs.decode_s(1024 * 1536) == pytest.approx(4.8)
    assert costs.decode_s(128 * 128) == pytest.approx(0.025)


def test_pictures_are_thought_to_be_encoded_as_fast_as_they_are_decoded_until_one_has_been() -> None:
    costs = CostModel()
    assert costs.encode_picture_s(100) is None
    costs.correct_decode(1024 * 1024, 2.0)
    assert costs.encode_picture_s(1024 * 1024) == pytest.approx(2.0)
    costs.correct_encode_picture(1024 * 1024, 0.8)
    costs.correct_encode_picture(256 * 256, 0.1)
    assert costs.encode_picture_s(1024 * 1024) == pytest.approx(0.8)
    assert costs.encode_picture_s(256 * 256) == pytest.approx(0.05)  # the lower median, of the large one
    assert costs.decode_s(1024 * 1024) == pytest.approx(2.0)


def test_what_cannot_be_a_measurement_is_refused_or_ignored() -> None:
    costs = CostModel()
    with pytest.raises(ValueError, match="samples"):
        costs.fit([])
    with pytest.raises(ValueError, match="more than 0 seconds"):
        costs.fit([(Work(1, 1), 0.0)])
    costs.correct(Work(1, 1), 0.0)
    costs.correct_encode(0, 1.0)
    costs.correct_decode(10, 0.0)
    costs.correct_decode(-10, 1.0)
    assert (costs.denoise_s(Work(1, 1)), costs.encode_s(1), costs.decode_s(1)) == (None, None, None)


def test_the_budget_is_the_fewest_tokens_past_which_throughput_stays() -> None:
    steps = [(500, 0.1), (1000, 0.12), (2000, 0.2), (4000, 0.36), (8000, 0.7), (16000, 1.39)]
    assert choose_budget(steps) == 4000  # 11,111 tokens a second; the best is 11,511
    assert choose_budget([(64, 0.5)]) == 64
    assert choose_budget((tokens, tokens / 1000) for tokens in (4096, 512, 1024)) == 512
    assert choose_budget([(100, 1.0), (200, 1.0), (100, 0.01), (100, 1.1)]) == 200  # one lucky step counts for little
    with pytest.raises(ValueError, match="at least one"):
        choose_budget([])
