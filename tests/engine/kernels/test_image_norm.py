"""The norm over an image's channels, the reference and the kernel, against its formula in float64."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.image_norm import (
    add_image_norm_,
    add_image_norm_triton_,
    add_residual_,
    add_residual_triton_,
    image_norm,
    image_norm_triton,
)
from tests.engine.kernels.tolerances import DTYPES, poisoned

SHAPES = [  # images, channels, height, width
    (1, 1, 1, 1),
    (2, 8, 1, 1),
    (1, 24, 13, 11),  # a program holds 128 pixels of these
    (3, 64, 5, 1),
    (1, 96, 7, 9),
    (2, 129, 3, 5),
    (1, 192, 1, 17),
    (1, 384, 3, 7),
]


def expected(x: torch.Tensor, weight: torch.Tensor, silu: bool) -> torch.Tensor:
    x, weight = x.double(), weight.double()
    length = x.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
    result = x / length * x.shape[1] ** 0.5 * weight[:, None, None]
    return result * result.sigmoid() if silu else result


def normed(x: torch.Tensor, weight: torch.Tensor, silu: bool, triton: bool, device: torch.device) -> torch.Tensor:
    with poisoned(device):
        if triton:
            return image_norm_triton(x.to(device), weight.to(device), silu=silu).cpu()
        return image_norm(x, weight, silu=silu)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_divided_by_their_length_over_the_channels(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, silu: bool, triton: bool, device: torch.device
) -> None:
    x = torch.randn(shape).mul(3).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(shape[1]).to(dtype)
    before = x.clone()
    actual = normed(x, weight, silu, triton, device)
    assert torch.equal(x, before)
    assert actual.dtype == dtype
    assert actual.stride() == x.stride()
    torch.testing.assert_close(actual.double(), expected(x, weight, silu), atol=tolerance, rtol=tolerance)


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape).mul(3).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("shape", SHAPES)
def test_a_bias_is_added_before_and_not_rounded(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, triton: bool, device: torch.device
) -> None:
    x, weight, bias = drawn(shape, dtype), torch.randn(shape[1]).to(dtype), torch.randn(shape[1]).to(dtype)
    where = device if triton else torch.device("cpu")
    before = x.clone()
    with poisoned(device):
        norm = image_norm_triton if triton else image_norm
        actual = norm(x.to(where), weight.to(where), silu=True, bias=bias.to(where)).cpu()
    assert torch.equal(x, before)
    total = x.double() + bias.double()[:, None, None]
    torch.testing.assert_close(actual.double(), expected(total, weight, True), atol=tolerance, rtol=2 * tolerance)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("shape", SHAPES)
def test_a_residual_is_added_in_place_by_the_norm_or_alone(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, has_bias: bool, triton: bool, device: torch.device
) -> None:
    residual, weight = drawn(shape, dtype), torch.randn(shape[1]).to(dtype)
    bias = torch.randn(shape[1]).to(dtype) if has_bias else None
    where = device if triton else torch.device("cpu")
    x, alone = (drawn(shape, dtype).to(where, copy=True) for _ in range(2))
    sums = [image.cpu().double() + residual.double() + (0 if bias is None else bias.double()[:, None, None])
            for image in (x, alone)]  # fmt: skip
    arguments = {"bias": bias if bias is None else bias.to(where)}
    with poisoned(device):
        norm = add_image_norm_triton_ if triton else add_image_norm_
        normed = norm(x, residual.to(where), weight.to(where), silu=True, **arguments).cpu()
        assert (add_residual_triton_ if triton else add_residual_)(alone, residual.to(where), **arguments) is alone
    for image, total in zip((x, alone), sums, strict=True):
        torch.testing.assert_close(image.cpu().double(), total, atol=tolerance, rtol=tolerance)
        assert image.stride() == residual.stride()
    stored = x.cpu().double()  # the sum as it is rounded
    torch.testing.assert_close(normed.double(), expected(stored, weight, True), atol=tolerance, rtol=2 * tolerance)


@pytest.mark.parametrize("triton", [False, True])
def test_a_residual_of_another_layout_is_the_same(triton: bool, device: torch.device) -> None:
    where = device if triton else torch.device("cpu")
    x, residual, weight = drawn((2, 24, 5, 3), torch.float32), torch.randn(2, 24, 5, 3), torch.randn(24)
    total = x + residual
    norm = add_image_norm_triton_ if triton else add_image_norm_
    x = x.to(where)
    normed = norm(x, residual.to(where), weight.to(where)).cpu()
    assert torch.equal(x.cpu(), total)
    torch.testing.assert_close(normed.double(), expected(total, weight, False), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("triton", [False, True])
def test_an_image_with_its_channels_apart_gives_the_same(triton: bool, device: torch.device) -> None:
    x, weight = torch.randn(2, 24, 5, 3), torch.randn(24)
    actual = normed(x, weight, True, triton, device)
    torch.testing.assert_close(actual.double(), expected(x, weight, True), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("triton", [False, True])
def test_pixels_without_a_length_stay_nothing(triton: bool, device: torch.device) -> None:
    x = torch.zeros(1, 16, 2, 2)
    x[0, :, 0, 1] = 1e-14  # shorter than the shortest length there is
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.ones(16)
    actual = normed(x, weight, False, triton, device)
    torch.testing.assert_close(actual.double(), expected(x, weight, False), atol=0, rtol=1e-5)
    assert actual[0, 0, 0, 1] == pytest.approx(0.04, rel=1e-5)


@pytest.mark.parametrize("triton", [False, True])
def test_a_pixel_that_is_not_a_number_is_so_in_all_channels(triton: bool, device: torch.device) -> None:
    x, weight = torch.randn(1, 8, 1, 2), torch.ones(8)
    x[0, 3, 0, 1] = float("nan")
    actual = normed(x, weight, True, triton, device)
    assert actual[..., 1].isnan().all()
    assert actual[..., 0].isfinite().all()


@pytest.mark.gpu
def test_an_image_of_more_values_than_32_bits_count(device: torch.device) -> None:
    x = torch.randn(1, 192, 8, 8, device=device, dtype=torch.bfloat16)
    many = x.contiguous(memory_format=torch.channels_last).repeat(1, 1, 400, 440)
    assert many.numel() > 2**31
    many = many.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(192, device=device, dtype=torch.bfloat16)
    assert torch.equal(
        image_norm_triton(many, weight, silu=True)[..., -8:, -8:], image_norm_triton(x, weight, silu=True)
    )
