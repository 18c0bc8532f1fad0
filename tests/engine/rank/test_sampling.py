"""Schedule and noise against diffusers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline
from diffusers.pipelines.krea2.pipeline_krea2 import calculate_shift
from hypothesis import given
from hypothesis import strategies as st

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.rank.sampling import default_mu, draw_noise, guide, make_sigmas

DEMO = ModelConfig.from_folder(DEMO_CHECKPOINT)
RAW = replace(DEMO, is_distilled=False)


@given(steps=st.integers(1, 200), mu=st.floats(-3, 6))
def test_sigmas_are_diffusers(steps: int, mu: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    sigmas = make_sigmas(steps, mu)
    assert sigmas.shape == (steps + 1,)
    torch.testing.assert_close(sigmas, scheduler.sigmas, atol=2e-7, rtol=2e-6)


@pytest.mark.parametrize("tokens", [16, 256, 4096, 6400, 32768])
def test_mu_is_linear_in_the_image_tokens_unless_distilled(tokens: int) -> None:
    assert default_mu(RAW, tokens) == pytest.approx(calculate_shift(tokens, 256, 6400, 0.5, 1.15), abs=1e-12)
    assert default_mu(DEMO, tokens) == 1.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 2**53 - 1))
def test_noise_is_what_diffusers_draws_for_the_seed(dtype: torch.dtype, height: int, width: int, seed: int) -> None:
    latents = torch.randn(
        (1, 16, 2 * height, 2 * width), generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype
    )
    packed = Krea2Pipeline._pack_latents(_Patch2(), latents, 1, 16, 2 * height, 2 * width)[0].float()
    noise = draw_noise(seed, 16 * width, 16 * height, DEMO, dtype)
    assert noise.dtype == torch.float32
    assert torch.equal(noise, packed)


class _Patch2:
    patch_size = 2


def test_guidance_is_kreas() -> None:
    conditional, unconditional = torch.randn(2, 5, 3)
    assert torch.equal(guide(conditional, unconditional, 0.0), conditional)
    usual = unconditional + (3.5 + 1) * (conditional - unconditional)  # classifier-free guidance at scale g + 1
    torch.testing.assert_close(guide(conditional, unconditional, 3.5), usual, atol=1e-5, rtol=1e-5)
