"""The comparison with diffusers in bfloat16, which float32 judges."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.verify import checks
from bench.verify.checks import Asked, ask_diffusers, compare
from bench.verify.subject.models import Model, requests_for
from tests.bench.verify.faults import HOW, SIZES, WEIGHTS, first_difference, parameter, plant, quiet

pytestmark = pytest.mark.usefixtures("no_collecting")


@pytest.fixture(scope="module")
def low(model: Model) -> Asked:
    """As `asked`, in bfloat16."""
    return ask_diffusers(model, requests_for(model, "bfloat16", SIZES, steps=1, images=1), "bfloat16", HOW, quiet)


def test_bfloat16_is_judged_by_float32(model: Model, low: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = list(compare(model, low, HOW, quiet))
    assert [check.name for check in checked if not check.holds] == []
    rounded = [check for check in checked if check.name.startswith(("transformer block", "text encoder layer"))]
    assert all(1e-4 < check.error < 1e-2 for check in rounded)
    plant(monkeypatch, lambda rank: parameter(rank, WEIGHTS["transformer block 2"]).mul_(1.03))
    assert first_difference(list(compare(model, low, HOW, quiet))).name == "transformer block 2"


def test_without_room_for_float32_only_stages_are_judged_in_bfloat16(
    model: Model, low: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = replace(HOW, reference=None)
    monkeypatch.setattr(checks, "ask", lambda *_, reference: replace(low.answers, failures={}))
    checked = list(compare(model, ask_diffusers(model, low.answers.requests, "bfloat16", how, quiet), how, quiet))
    assert [check.name for check in checked if not check.holds] == ["diffusers' float32"]
    names = {check.name for check in checked}
    assert names >= {"text encoder layer 4", "transformer block 2", "guidance and Euler step 1", "VAE up block 3"}
    assert not any(name.startswith(("text encoder tap", "velocity", "final latents")) for name in names)
