"""The two gates, the reference and the kernel, against their formulas in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from engine.kernels.fp8 import Fp8Rows, empty_rows
from engine.kernels.gate import gate_mul_triton, sigmoid_mul, silu_mul
from tests.engine.kernels.tolerances import DTYPES, assert_fp8_close, poisoned

WIDTHS = [32, 88, 129]


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("tokens", [1, 13])
def test_silu_mul_of_a_stacked_matrix(
    tokens: int, width: int, dtype: torch.dtype, tolerance: float, fp8: bool, triton: bool, device: torch.device
) -> None:
    stacked = torch.randn(tokens, 2 * width).mul(4).to(dtype)
    before = stacked.clone()
    gate, up = stacked.double().chunk(2, dim=-1)
    with poisoned(device):
        if triton:
            on_device = stacked.to(device)
            actual = gate_mul_triton(on_device[:, width:], on_device[:, :width], silu=True, fp8=fp8)
            assert torch.equal(on_device.cpu(), before)
        else:
            actual = silu_mul(stacked, fp8=fp8)
    assert torch.equal(stacked, before)
    expected = gate * gate.sigmoid() * up
    if fp8:
        assert_fp8_close(actual, expected, dtype)
    else:
        assert isinstance(actual, torch.Tensor)
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.cpu().double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("width", WIDTHS)
def test_sigmoid_mul_takes_a_column_slice_as_gate(
    width: int, dtype: torch.dtype, tolerance: float, fp8: bool, triton: bool, device: torch.device
) -> None:
    packed = torch.randn(11, 3 * width).mul(4).to(dtype)
    x, gate = torch.randn(11, width).to(dtype), packed[:, 2 * width :]
    with poisoned(device):
        if triton:
            actual = gate_mul_triton(x.to(device), packed.to(device)[:, 2 * width :], silu=False, fp8=fp8)
        else:
            actual = sigmoid_mul(x, gate, fp8=fp8)
    expected = x.double() * gate.double().sigmoid()
    if fp8:
        assert_fp8_close(actual, expected, dtype)
    else:
        assert isinstance(actual, torch.Tensor)
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.cpu().double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "parts", "width"), [(0, 2, 32), (1, 4, 64), (11, 2, 32), (7, 4, 192)])
def test_sigmoid_mul_of_what_other_ranks_made(
    tokens: int, parts: int, width: int, dtype: torch.dtype, fp8: bool, triton: bool, device: torch.device
) -> None:
    """To the bit what it makes of the parts put together."""
    packed = torch.randn(tokens, 3 * width).to(device, dtype)
    gate, x = packed[:, 2 * width :], torch.randn(parts, tokens, width // parts).to(device, dtype).transpose(0, 1)
    together = x.reshape(tokens, width)
    with poisoned(device):
        if triton:
            actual, expected = (gate_mul_triton(each, gate, silu=False, fp8=fp8) for each in (x, together))
        else:
            actual, expected = (sigmoid_mul(each, gate, fp8=fp8) for each in (x, together))
    if isinstance(actual, Fp8Rows):
        assert isinstance(expected, Fp8Rows)
        assert torch.equal(actual.scales, expected.scales)
        actual, expected = actual.values.view(torch.uint8), expected.values.view(torch.uint8)
    assert isinstance(expected, torch.Tensor)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads_first", [False, True])
def test_a_part_of_a_result_is_written_where_it_belongs(
    heads_first: bool, dtype: torch.dtype, fp8: bool, triton: bool, device: torch.device
) -> None:
    """Whatever the layout of heads, to the bit as a copy of them would be; no other row is touched."""
    heads, head_dim = 3, 24
    x = torch.randn(5, heads, head_dim).mul(4).to(dtype).to(device)
    gate = torch.randn(5, 2 * heads * head_dim).to(dtype).to(device)[:, heads * head_dim :]
    laid_out = x.transpose(0, 1).contiguous().transpose(0, 1) if heads_first else x
    multiply = partial(gate_mul_triton, silu=False) if triton else sigmoid_mul
    result = empty_rows(9, heads * head_dim, x, fp8=fp8)
    parts = result[:2] if isinstance(result, Fp8Rows) else (result,)
    for part in parts:
        part.copy_(torch.full(part.shape, 7.0))
    assert multiply(laid_out, gate, fp8=fp8, out=result, first=3) is result
    expected = multiply(x.flatten(1), gate, fp8=fp8)
    expected_parts = expected[:2] if isinstance(expected, Fp8Rows) else (expected,)
    for part, expected_part in zip(parts, expected_parts, strict=True):
        assert torch.equal(part[3:8].float(), expected_part.float())
        assert (part[[0, 1, 2, 8]].float() == 7).all()


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_stays_so_in_fp8_and_in_its_row(bad: float, triton: bool, device: torch.device) -> None:
    """Clamped to numbers it would give an image that looks wrong for no reason that anyone could find."""
    x, gate = torch.randn(2, 4, 32)
    x[1, 3] = bad
    if triton:
        actual = gate_mul_triton(x.to(device), gate.to(device), silu=False, fp8=True)
    else:
        actual = sigmoid_mul(x, gate, fp8=True)
    assert isinstance(actual, Fp8Rows)
    product = actual.dequantize().cpu().sum(dim=-1)
    assert product.isfinite().tolist() == [True, False, True, True]
