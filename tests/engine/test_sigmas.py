"""Which lists are the noise levels of a schedule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.rank.sampling import make_sigmas
from engine.sigmas import are_sigmas, without_last_zero


@pytest.mark.parametrize("sigmas", [(1.0,), (1, 0.75, 0.5, 0.25), (0.3, 0.1), (1.0, 0.999999), (0.000002, 0.000001)])
def test_falling_numbers_are(sigmas: tuple[float, ...]) -> None:
    assert are_sigmas(sigmas)


@pytest.mark.parametrize(
    "sigmas",
    [
        *((), (0.0,), (1.001,), (1.0, 1.0), (0.5, 0.6), (1.0, 0.0, 0.0), (1.0, -0.1), (0.5, 0.4999999), (1e-9,)),
        *((math.nan,), (1.0, math.nan), (1.0, math.nan, 0.5), (math.inf,), (1.0, -math.inf)),
    ],
)
def test_others_are_not(sigmas: tuple[float, ...]) -> None:
    assert not are_sigmas(sigmas)


def test_the_0_at_the_end_is_none() -> None:
    assert without_last_zero([1.0, 0.5, 0.0]) == (1.0, 0.5)
    assert without_last_zero([1.0, 0.5]) == (1.0, 0.5)
    assert without_last_zero([0.0]) == (0.0,)  # no schedule
    assert without_last_zero([]) == ()


@given(st.lists(st.floats(0, 1), max_size=12).map(lambda levels: tuple(sorted(levels, reverse=True))))
def test_what_is_one_still_falls_in_float32(sigmas: tuple[float, ...]) -> None:
    if are_sigmas(sigmas):
        levels = make_sigmas(len(sigmas), 0.0, sigmas).numpy()
        assert (np.diff(levels) < 0).all()
        np.testing.assert_allclose(levels[:-1], sigmas, rtol=3e-7)  # a mu of 0 shifts nothing
