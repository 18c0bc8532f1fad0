"""How many steps a strength leaves, against the definitions of those whose rules these are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import QwenImageImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st

from engine.pictures.strength import MOST_SCHEDULE_STEPS, STRENGTH_STEPS, steps_of

STRENGTHS = st.integers(0, 997).map(lambda part: part / 997) | st.integers(0, 100).map(lambda percent: percent / 100)


@given(st.integers(1, 200), STRENGTHS)
def test_partial_runs_the_steps_that_diffusers_runs(steps: int, strength: float) -> None:
    scheduler = SimpleNamespace(timesteps=torch.arange(steps), order=1)
    theirs = QwenImageImg2ImgPipeline.get_timesteps(SimpleNamespace(scheduler=scheduler), steps, strength, None)
    run, skipped = steps_of(steps, strength, "partial")
    assert (run, skipped) == (theirs[1], steps - theirs[1])
    assert theirs[0].tolist() == list(range(skipped, steps))


@given(st.integers(1, 200), STRENGTHS.filter(bool))
def test_full_runs_all_steps_behind_those_that_comfyui_leaves_out(steps: int, strength: float) -> None:
    """Its sampler takes the last steps + 1 noise levels of int(steps / denoise) steps; all above 0.9999."""
    levels = list(range(steps + 1)) if strength > 0.9999 else list(range(int(steps / strength) + 1))[-(steps + 1) :]
    run, skipped = steps_of(steps, strength, "full")
    assert (run, skipped) == (len(levels) - 1, levels[0])


@pytest.mark.parametrize("rule", STRENGTH_STEPS)
@given(steps=st.integers(1, 200))
def test_the_ends(rule: str, steps: int) -> None:
    assert steps_of(steps, 0.0, rule) == (0, steps)
    assert steps_of(steps, 1.0, rule) == (steps, 0)


@pytest.mark.parametrize("strength", [5e-324, 1e-320, 1e-300, 1e-9])
def test_whatever_is_above_0_leaves_numbers(strength: float) -> None:
    run, skipped = steps_of(8, strength, "full")
    assert run == 8
    assert skipped > MOST_SCHEDULE_STEPS  # which a request may not have
    assert sum(steps_of(8, strength, "partial")) == 8
