"""Nearest-neighbour upsampling copies, so the reference and the kernel are exact."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.upsample import upsample, upsample_triton
from tests.engine.kernels.tolerances import poisoned

SHAPES = [  # images, channels, height, width
    (1, 1, 1, 1),
    (2, 8, 1, 3),
    (2, 24, 5, 131),  # a program holds 128 pixels of a row of these
    (3, 64, 3, 1),
    (1, 96, 7, 9),
    (2, 129, 3, 5),
    (1, 384, 3, 11),
]


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pixel_becomes_two_by_two(
    shape: tuple[int, ...], dtype: torch.dtype, triton: bool, device: torch.device
) -> None:
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    with poisoned(device):
        actual = upsample_triton(x.to(device)).cpu() if triton else upsample(x)
    assert torch.equal(actual, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    assert actual.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("triton", [False, True])
def test_an_image_with_its_channels_apart_gives_the_same(triton: bool, device: torch.device) -> None:
    x = torch.randn(2, 24, 5, 3)
    actual = upsample_triton(x.to(device)).cpu() if triton else upsample(x)
    assert torch.equal(actual, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


@pytest.mark.gpu
def test_an_image_of_more_values_than_32_bits_count(device: torch.device) -> None:
    x = torch.randn(1, 192, 1700, 1700, device=device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    actual = upsample_triton(x)
    assert actual.numel() > 2**31
    for down in range(2):
        for right in range(2):
            assert torch.equal(actual[..., -20 + down :: 2, -20 + right :: 2], x[..., -10:, -10:])
