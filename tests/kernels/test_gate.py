"""The two gates against their formulas in float64."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.gate import sigmoid_mul, silu_mul

DTYPES = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("tokens", [1, 13])
def test_silu_mul(tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    stacked = torch.randn(tokens, 2 * 88).mul(4).to(dtype)
    before = stacked.clone()
    gate, up = stacked.double().chunk(2, dim=-1)
    actual = silu_mul(stacked)
    torch.testing.assert_close(actual.double(), gate * gate.sigmoid() * up, atol=tolerance, rtol=tolerance)
    assert torch.equal(stacked, before)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
def test_sigmoid_mul_takes_a_column_slice_as_gate(dtype: torch.dtype, tolerance: float) -> None:
    packed = torch.randn(11, 96).mul(4).to(dtype)
    x, gate = torch.randn(11, 32).to(dtype), packed[:, 64:]
    actual = sigmoid_mul(x, gate)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), x.double() * gate.double().sigmoid(), atol=tolerance, rtol=tolerance)
