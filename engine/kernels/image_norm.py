"""The VAE's norm: every pixel divided by its length over the channels, scaled, and mostly followed by SiLU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from engine.kernels.jit import kernel

if TYPE_CHECKING:
    import triton.language as tl

_SHORTEST = 1e-12  # a pixel's length counts as at least this, as in F.normalize
_TILE = 4096  # elements a program holds: 32 a thread, four loads of 16 bytes in bfloat16


def image_norm(x: torch.Tensor, weight: torch.Tensor, *, silu: bool = False) -> torch.Tensor:
    """x / |x| · sqrt(channels) · weight over the channels of an image, with `silu` also x · sigmoid(x) of that.

    x: (images, channels, h, w); weight: (channels,). The result is laid out in memory like x, on a GPU channels_last.
    """
    return image_norm_triton(x, weight, silu=silu) if x.is_cuda else image_norm_torch(x, weight, silu=silu)


def image_norm_torch(x: torch.Tensor, weight: torch.Tensor, *, silu: bool = False) -> torch.Tensor:
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_(min=_SHORTEST)
    result = (x / length).mul_((weight.float() * x.shape[1] ** 0.5).view(-1, 1, 1))
    return (F.silu(result, inplace=True) if silu else result).to(x.dtype)


def image_norm_triton(x: torch.Tensor, weight: torch.Tensor, *, silu: bool = False) -> torch.Tensor:
    """The same by the kernel. x is copied first if it is not channels_last, which the result always is."""
    images, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).contiguous()
    result = torch.empty_like(x)
    block, rows = tile_shape(channels)
    _image_norm[(-(-images * height * width // rows),)](
        x, weight, result, x.numel(), channels, channels**0.5, _SHORTEST,
        ROWS=rows, BLOCK=block, SILU=silu, num_warps=4,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def tile_shape(channels: int) -> tuple[int, int]:
    """What a program of four warps holds: channels (a power of two, at least `channels`) and pixels."""
    block = 1 << (channels - 1).bit_length()
    return block, max(1, _TILE // block)


@kernel
def _image_norm(
    x_ptr, weight_ptr, y_ptr, elements, channels, scale, shortest,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    offsets = pixel[:, None] * channels + channel[None, :]
    # elements, not pixels, since 16 nearly always divides them, and Triton compiles anew for a number that it does not
    mask = (offsets < elements) & (channel < channels)[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    weight = tl.load(weight_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, axis=1)), shortest, propagate_nan=tl.PropagateNan.ALL)
    y = x * (1.0 / length)[:, None] * (weight * scale)[None, :]
    if SILU:
        y *= tl.sigmoid(y)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
