"""Rates of right pictures: their intervals, and what they are counted over."""

from __future__ import annotations

import pytest

from bench.adherence.drawing import draw_and_judge
from bench.adherence.rates import ALL, Rate, held_out_cases, rates_by, rates_by_attribute, wilson_interval
from demo.captions import held_out
from demo.judge import ATTRIBUTES
from demo.pictures import SIZES
from tests.bench.adherence.painter import WAY, Painter, with_every_fourth_wrong


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_wilsons(right: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(right, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(count - right, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)
    assert Rate.of([True] * right + [False] * (count - right)).share == right / count


def test_cases_are_held_out_and_the_same_however_many_there_are() -> None:
    cases = held_out_cases(120, None)
    assert all(held_out(case.prompt) for case in cases)
    assert len({case.prompt for case in cases}) == len({case.seed for case in cases}) == 120
    assert cases[:50] == held_out_cases(50, None)
    assert [(case.width, case.height) for case in cases] == list(SIZES) * 12
    assert {case.kind for case in cases} == {"one object", "two kinds", "some of a kind"}
    assert {case.size for case in held_out_cases(5, (160, 96))} == {"160x96"}


def test_rates_count_an_attribute_over_the_prompts_that_state_it() -> None:
    cases = held_out_cases(40, (128, 128))
    judged = [one.judged for one in draw_and_judge(Painter(with_every_fourth_wrong), WAY, cases)]
    rates = rates_by_attribute(judged)
    assert list(rates) == [ALL, *ATTRIBUTES]
    assert (rates[ALL].right, rates[ALL].count) == (rates["background"].right, rates["background"].count) == (30, 40)
    assert rates["relation"].count == sum(case.prompt.second is not None for case in cases)
    assert rates["size"].count == sum(case.prompt.size != "" for case in cases)
    assert all(rates[name].share == 1 for name in ATTRIBUTES if name != "background")
    by_seed = rates_by(judged, lambda case: str(case.seed % 4))
    assert {group: (rate.right, rate.count) for group, rate in by_seed.items()} == {
        "0": (0, 10),
        **dict.fromkeys("123", (10, 10)),
    }
    without_place = [one for one in judged if not one.case.prompt.place]
    assert "place" not in rates_by_attribute(without_place)
