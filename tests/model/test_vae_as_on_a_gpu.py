"""The decoder's way of computing on a GPU, with the references of its kernels and with the kernels themselves in
Triton's interpreter: the pictures are those of the way on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.kernels import chunked_attention
from engine.model import VAEDecoder, vae
from tests.model.test_vae_in_rows import split
from tests.model.test_vae_on_devices import REAL_PROPORTIONS, decoder

TOLERANCE = 1e-5  # of pixels in [-1, 1]: sums in another order
CONFIGS: list[dict[str, Any]] = [{}, REAL_PROPORTIONS, {"dim_mult": (2, 1, 3), "num_res_blocks": 3}]


def pixels(decoder: VAEDecoder, latents: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        return decoder(latents, **options)


def compute_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, *, triton: bool = False) -> None:
    monkeypatch.setattr(vae, "_attend", chunked_attention.chunked_attention)
    if triton:
        monkeypatch.setattr(chunked_attention, "weigh", chunked_attention.weigh_triton)


@pytest.mark.parametrize("fields", CONFIGS)
def test_pictures_are_the_same(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    model = decoder(**fields)
    latents = torch.randn(2, 16, 24, 26)
    whole, in_tiles = pixels(model, latents), pixels(model, latents, tile=24)
    assert whole.std() > 0.02
    compute_as_on_a_gpu(monkeypatch)
    torch.testing.assert_close(pixels(model, latents), whole, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(pixels(model, latents, tile=24), in_tiles, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("ranks", [2, 4])
def test_rows_of_several_ranks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    model = decoder(**REAL_PROPORTIONS)
    latents = torch.randn(1, 16, 31, 6)
    whole = pixels(model, latents)
    compute_as_on_a_gpu(monkeypatch)
    torch.testing.assert_close(torch.cat(split(model, latents, ranks), dim=2), whole, atol=TOLERANCE, rtol=0)


def test_pictures_of_the_kernels_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(**REAL_PROPORTIONS)
    latents = torch.randn(1, 16, 5, 6)
    whole = pixels(model, latents)
    compute_as_on_a_gpu(monkeypatch, triton=True)
    torch.testing.assert_close(pixels(model, latents), whole, atol=TOLERANCE, rtol=0)
