"""RMSNorm and what is fused with it, the reference and the kernel, against the formulas in float64."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.norm import add_rms_norm, add_rms_norm_modulate_, norm_triton, rms_norm, rms_norm_modulate
from engine.kernels.packing import Packing
from tests.engine.kernels.tolerances import DTYPES, assert_fp8_close, poisoned

EPS = 1e-5
LENGTHS = [(1,), (7,), (3, 7), (1, 1, 63), (5, 32, 17), (0, 4, 0, 1)]
WIDTHS = [16, 48, 513]  # a power of two, three of them, and nothing of the kind
CPU = torch.device("cpu")


def _normed(x: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt()


def _gather(vectors: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    return vectors.double().repeat_interleave(torch.tensor(lengths), dim=0)


def _vectors(lengths: tuple[int, ...], width: int) -> torch.Tensor:
    """Gate, factor and shift of each segment, (segments, 3, width): strided, as the model has them."""
    return torch.randn(len(lengths), 3, width)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 24, 128, 513])
def test_rms_norm_is_diffusers(width: int, dtype: torch.dtype) -> None:
    diffusers = pytest.importorskip("diffusers.models.transformers.transformer_krea2")
    norm = diffusers.Krea2RMSNorm(width, EPS)
    norm.weight.data.normal_()
    x = torch.randn(9, width).mul(3).to(dtype)
    torch.testing.assert_close(rms_norm(x, norm.weight + 1, EPS), norm(x), atol=0, rtol=2e-7)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("tokens", [1, 9])
def test_rms_norm(
    tokens: int, width: int, dtype: torch.dtype, tolerance: float, triton: bool, device: torch.device
) -> None:
    x, weight = torch.randn(tokens, width).mul(3).to(dtype), torch.randn(width)
    expected = _normed(x) * weight.double()
    with poisoned(device):
        actual = norm_triton(x.to(device), weight.to(device), EPS) if triton else rms_norm(x, weight, EPS)
    assert isinstance(actual, torch.Tensor)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.cpu().double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("width", WIDTHS)
def test_a_residual_is_added_and_kept_apart(
    width: int, dtype: torch.dtype, tolerance: float, triton: bool, device: torch.device
) -> None:
    x, update = torch.randn(2, 11, width).to(dtype)
    weight, before = torch.randn(width), x.clone()
    if triton:
        on_device, total = x.to(device), torch.full_like(x, float("nan"), device=device)
        normed = norm_triton(on_device, weight.to(device), EPS, update=update.to(device), total=total)
        assert isinstance(normed, torch.Tensor)
        assert torch.equal(on_device.cpu(), before)
    else:
        total, normed = add_rms_norm(x, update, weight, EPS)
        assert torch.equal(x, before)
    torch.testing.assert_close(total.cpu().double(), x.double() + update.double(), atol=tolerance, rtol=tolerance)
    expected = _normed(total.cpu()) * weight.double()
    torch.testing.assert_close(normed.cpu().double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_modulation_is_that_of_the_rows_segment(
    lengths: tuple[int, ...], width: int, dtype: torch.dtype, tolerance: float, triton: bool, device: torch.device
) -> None:
    x = torch.randn(sum(lengths), width).to(dtype)
    vectors = _vectors(lengths, width)
    factor, shift = vectors[:, 1], vectors[:, 2]
    expected = _normed(x) * _gather(factor, lengths) + _gather(shift, lengths)
    if triton:
        moved = vectors.to(device)
        packing = Packing(lengths, device)
        actual = norm_triton(x.to(device), moved[:, 1], EPS, shift=moved[:, 2], packing=packing)
    else:
        actual = rms_norm_modulate(x, factor, shift, EPS, Packing(lengths, CPU))
    assert isinstance(actual, torch.Tensor)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.cpu().double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_gated_residual_is_added_in_place_and_normed_as_it_is_stored(
    lengths: tuple[int, ...], dtype: torch.dtype, tolerance: float, fp8: bool, triton: bool, device: torch.device
) -> None:
    width = 48
    x, update = torch.randn(2, sum(lengths), width).to(dtype)
    vectors = _vectors(lengths, width)
    added = x.double() + _gather(vectors[:, 0], lengths) * update.double()
    if triton:
        x = x.to(device)
        gate, factor, shift = vectors.to(device).unbind(1)
        packing = Packing(lengths, device)
        actual = norm_triton(
            x, factor, EPS, update=update.to(device), total=x, gate=gate, shift=shift, packing=packing, fp8=fp8
        )
    else:
        gate, factor, shift = vectors.unbind(1)
        actual = add_rms_norm_modulate_(x, update, gate, factor, shift, EPS, Packing(lengths, CPU), fp8=fp8)
    torch.testing.assert_close(x.cpu().double(), added, atol=tolerance, rtol=tolerance)
    expected = _normed(x.cpu()) * _gather(vectors[:, 1], lengths) + _gather(vectors[:, 2], lengths)
    if fp8:
        assert_fp8_close(actual, expected, dtype)
    else:
        assert isinstance(actual, torch.Tensor)
        torch.testing.assert_close(actual.cpu().double(), expected, atol=tolerance, rtol=tolerance)


def test_the_kernel_refuses_rows_that_do_not_lie_one_after_the_other(device: torch.device) -> None:
    """It would read others' numbers."""
    rows, weight = torch.randn(4, 32, device=device), torch.ones(16, device=device)
    apart, packed = rows[:, :16], rows[:, :16].contiguous()
    for x, update in ((apart, None), (apart, packed), (packed, apart)):
        with pytest.raises(AssertionError):
            norm_triton(x, weight, EPS, update=update, total=torch.empty_like(packed))


def test_the_kernel_refuses_factors_and_shifts_that_lie_unlike(device: torch.device) -> None:
    x, vectors = torch.randn(4, 16, device=device), torch.randn(2, 3, 16, device=device)
    packing = Packing([1, 3], device)
    with pytest.raises(AssertionError):
        norm_triton(x, vectors[:, 1], EPS, shift=vectors[:, 2].contiguous(), packing=packing)
