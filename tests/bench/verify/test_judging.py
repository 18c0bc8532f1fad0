"""How a difference is judged: what may differ, and what may not."""

from __future__ import annotations

import pytest
import torch

from bench.verify.judging import judge_mean, judge_stage, judge_whole


@pytest.mark.parametrize("both", [float("nan"), float("inf")])
def test_no_number_on_both_sides_is_a_failure(both: float) -> None:
    x = torch.full((2, 3), both)
    good = torch.ones(2, 3)
    assert not judge_stage("s", "float32", "one", x, x, exact=None, added_to=None).holds
    assert not judge_stage("s", "bfloat16", "one", x, x, exact=good, added_to=None).holds
    assert not judge_stage("s", "bfloat16", "one", x, x, exact=x, added_to=None).holds
    assert not judge_whole("s", "float32", "one", x, x).holds
    assert not judge_mean("s", "bfloat16", "one", (both, both), images=1).holds


def test_a_stage_is_judged_by_what_it_adds() -> None:
    """The input of a late layer of the text encoder is a thousand times what the layer adds."""
    given = torch.full((4, 100), 1e3)
    right = given + torch.linspace(-1, 1, 100)
    wrong = given + 1.001 * torch.linspace(-1, 1, 100)
    assert judge_stage("s", "float32", "one", right, right, exact=None, added_to=given).holds
    assert not judge_stage("s", "float32", "one", wrong, right, exact=None, added_to=given).holds
