"""What takes noise to latents: sigmas, mu, the noise itself and guidance, as diffusers' `Krea2Pipeline` has them.

The step from one sigma to the next is `Denoiser.step`.
"""

from __future__ import annotations

import math

import torch

from engine.config.model_config import ModelConfig
from engine.model.patches import pack_latents

DISTILLED_MU = 1.15


def default_mu(config: ModelConfig, image_tokens: int) -> float:
    """Choose the schedule's shift: 1.15 for the distilled model, otherwise linear in the number of image tokens."""
    if config.is_distilled:
        return DISTILLED_MU
    schedule = config.schedule
    slope = (schedule.max_shift - schedule.base_shift) / (schedule.max_image_seq_len - schedule.base_image_seq_len)
    return schedule.base_shift + slope * (image_tokens - schedule.base_image_seq_len)


def make_sigmas(steps: int, mu: float, given: tuple[float, ...] | None = None) -> torch.Tensor:
    """Make noise levels from 1 down to 0, (steps + 1,) float32.

    s = linspace(1, 1/steps, steps) or the `given` ones, shifted by exp(mu) / (exp(mu) + 1/s - 1); then 0. A mu of 0
    shifts nothing.
    """
    if given is None:
        s = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).float()
    else:
        s = torch.tensor(given, dtype=torch.float64).float()
    shift = torch.tensor(math.exp(mu))  # a number over a tensor would multiply by the reciprocal, an ulp off
    return torch.cat([shift / (shift + (1.0 / s - 1.0)), torch.zeros(1)])


def draw_noise(seed: int, width: int, height: int, config: ModelConfig, dtype: torch.dtype) -> torch.Tensor:
    """Draw an image's starting latents as tokens, (image tokens, in_channels) float32, on the CPU.

    Drawn in `dtype` from a generator of its own, so an image depends on its seed alone: it is the image that
    diffusers makes with `generator=torch.Generator("cpu").manual_seed(seed)`, at any degree and in any batch.
    """
    scale = config.vae.scale_factor
    shape = (1, config.vae.z_dim, height // scale, width // scale)
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype)
    return pack_latents(noise[0].float(), config.patch_size)


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, guidance: float) -> torch.Tensor:
    """Guide velocities (image tokens, in_channels) as Krea does: cond + g · (cond - uncond). Others' g is one more."""
    return conditional + guidance * (conditional - unconditional)
