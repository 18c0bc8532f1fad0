"""The VAE's decoder in two dimensions against diffusers' in three."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.rank.rank import Rank
from tests.cpu_kinds import pretend
from tests.engine_runs import on_ranks
from tests.oracle import load_pipeline, relative_error

TOLERANCE = 1e-5
SHAPES: dict[str, dict[str, Any]] = {
    "flat": {},
    "real proportions": {"vae_mult": (1, 2, 4, 4), "vae_res_blocks": 2},
    "wide": {"vae_base": 24, "vae_mult": (2, 1, 3, 2), "vae_res_blocks": 3},
    "three levels": {"vae_mult": (1, 2, 4), "vae_res_blocks": 2},
}


def theirs(folder: Path, latents: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As the end of `Krea2Pipeline.__call__`: (images, 3, H, W) in [-1, 1]."""
    vae = load_pipeline(folder, dtype).vae
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.inference_mode():
        return vae.decode(latents.to(dtype)[:, :, None] * std + mean).sample[:, :, 0]


def decode(folder: Path, latents: torch.Tensor, dtype: str = "float32") -> torch.Tensor:
    def run(rank: Rank) -> torch.Tensor:
        assert rank.model.vae is not None
        return rank.model.vae(latents)

    (image,) = on_ranks(folder, run, dtype=dtype)
    return image


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (26, 14), (1, 3)])
def test_decoded_pixels_equal_diffusers(checkpoint: Callable[..., Path], shape: str, height: int, width: int) -> None:
    # 64 input channels of the DiT are 16 latent channels of 2×2, whatever the VAE's depth
    folder = checkpoint(**SHAPES[shape])
    latents = torch.randn(2, 16, height, width, generator=torch.Generator().manual_seed(height))
    expected = theirs(folder, latents)
    assert expected.std() > 0.1
    assert relative_error(decode(folder, latents), expected) <= TOLERANCE


def test_a_middle_attention_over_many_pixels_equals_diffusers(turbo: Path) -> None:
    latents = torch.randn(1, 16, 66, 70, generator=torch.Generator().manual_seed(0))
    assert relative_error(decode(turbo, latents), theirs(turbo, latents)) <= TOLERANCE


def test_bytes_are_clipped_and_rounded_as_diffusers_does(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(vae_contrast=2.0)
    latents = torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(0))

    def run(rank: Rank) -> torch.Tensor:
        assert rank.model.vae is not None
        return rank.model.vae.decode_pixels(latents)

    (pixels,) = on_ranks(folder, run)
    (image,) = load_pipeline(folder).image_processor.postprocess(theirs(folder, latents), output_type="pil")
    difference = np.abs(pixels[0].numpy().astype(int) - np.asarray(image).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3  # float error at a rounding edge, not another rounding
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_bfloat16_decodes_as_closely_as_diffusers(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU with bfloat16, and on one without it."""
    folder = checkpoint(**SHAPES["real proportions"])
    latents = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    exact = theirs(folder, latents)
    their_error = (theirs(folder, latents, torch.bfloat16).float() - exact).abs().mean()
    for native, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        pretend(monkeypatch, native_bfloat16=native)
        image = decode(folder, latents, dtype="bfloat16")
        assert image.dtype == dtype
        assert (image.float() - exact).abs().mean() <= 1.1 * their_error
