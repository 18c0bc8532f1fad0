"""Norms and residuals against what their formulas say in float64, and against diffusers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers.models.transformers.transformer_krea2 import Krea2RMSNorm

from engine.kernels.norm import rms_norm, rms_norm_modulate
from engine.kernels.residual import add_gated_

EPS = 1e-5
BOUNDS = [(0, 1), (0, 7), (0, 3, 10), (0, 1, 2, 65), (0, 5, 5 + 32, 5 + 32 + 17)]
DTYPES = {torch.float32: 1e-6, torch.bfloat16: 2**-8}  # one rounding: half a unit in the last place, with some air


def _gather(vectors: torch.Tensor, bounds: tuple[int, ...]) -> torch.Tensor:
    lengths = torch.tensor([stop - start for start, stop in pairwise(bounds)])
    return vectors.repeat_interleave(lengths, dim=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 24, 128, 513])
def test_rms_norm_is_diffusers(width: int, dtype: torch.dtype) -> None:
    norm = Krea2RMSNorm(width, EPS)
    norm.weight.data.normal_()
    x = torch.randn(9, width).mul(3).to(dtype)
    torch.testing.assert_close(rms_norm(x, norm.weight + 1, EPS), norm(x), atol=0, rtol=2e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("bounds", BOUNDS)
def test_modulation_is_that_of_the_rows_segment(bounds: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    width = 48
    x = torch.randn(bounds[-1], width).to(dtype)
    weight = torch.randn(width)
    scale, shift = torch.randn(2, len(bounds) - 1, width)
    wide = x.double()
    normed = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    expected = (1 + _gather(scale, bounds).double()) * normed + _gather(shift, bounds).double()
    actual = rms_norm_modulate(x, weight, EPS, scale, shift, bounds)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("bounds", BOUNDS)
def test_gated_residual_adds_in_place(bounds: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    x, update = torch.randn(2, bounds[-1], 40).to(dtype)
    gate = torch.randn(len(bounds) - 1, 40)
    expected = x.double() + _gather(gate, bounds).double() * update.double()
    result = add_gated_(x, update, gate, bounds)
    assert result is x
    torch.testing.assert_close(x.double(), expected, atol=tolerance, rtol=tolerance)
