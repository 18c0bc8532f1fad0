"""The VAE's norm: every pixel divided by its length over the channels, scaled, and mostly followed by SiLU.

On the way it adds what is still missing of the image: the bias of the convolution that made it, and a residual.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine.kernels.jit import Kernel, Operation, power_of_2, tl

_SHORTEST = 1e-12  # a pixel's length counts as at least this, as in F.normalize
_TILE = 4096  # elements of a program: 32 a thread, four loads of 16 bytes in bfloat16


@Operation
def image_norm(
    x: torch.Tensor, weight: torch.Tensor, *, silu: bool = False, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns x / ‖x‖ · sqrt(channels) · weight over an image's channels, with `silu` y · sigmoid(y) of that.

    x: (images, channels, h, w); weight: (channels,); bias: (channels,), added to x before. The result is laid out in
    memory like x, on a GPU channels_last, for which x is copied first if it is not.
    """
    dtype = x.dtype
    if bias is not None:
        x = x.float() + bias.float().view(-1, 1, 1)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_(min=_SHORTEST)
    result = (x / length).mul_((weight.float() * x.shape[1] ** 0.5).view(-1, 1, 1))
    return (F.silu(result, inplace=True) if silu else result).to(dtype)


@image_norm.on_gpu
def image_norm_triton(x, weight, *, silu=False, bias=None) -> torch.Tensor:
    return _launch_norm(x.permute(0, 2, 3, 1).contiguous(), None, weight, silu, bias)


@Operation
def add_image_norm_(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    *,
    silu: bool = False,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Adds residual + bias to x in place, and returns `image_norm` of that. x, residual: (images, channels, h, w), x on
    a GPU channels_last; weight, bias: (channels,)."""
    return image_norm.reference(add_residual_.reference(x, residual, bias=bias), weight, silu=silu)


@add_image_norm_.on_gpu
def add_image_norm_triton_(x, residual, weight, *, silu=False, bias=None) -> torch.Tensor:
    return _launch_norm(x.permute(0, 2, 3, 1), residual.permute(0, 2, 3, 1).contiguous(), weight, silu, bias)


@Operation
def add_residual_(x: torch.Tensor, residual: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Adds residual + bias to x in place, as `add_image_norm_` takes them, and returns it."""
    if bias is None:
        return x.add_(residual)
    return x.copy_(x.float() + bias.float().view(-1, 1, 1) + residual.float())


@add_residual_.on_gpu
def add_residual_triton_(x, residual, *, bias=None) -> torch.Tensor:
    rows = x.permute(0, 2, 3, 1)
    assert rows.is_contiguous()
    channels = x.shape[1]
    block, at_once = tile_shape(channels)
    _add_residual[(-(-x.numel() // (channels * at_once)),)](
        rows, residual.permute(0, 2, 3, 1).contiguous(), rows if bias is None else bias, x.numel(), channels,
        ROWS=at_once, BLOCK=block, HAS_BIAS=bias is not None, num_warps=4,
    )  # fmt: skip
    return x


def _launch_norm(x, residual, weight, silu, bias) -> torch.Tensor:
    """Launches a program for each tile of pixels. x, residual: (images, h, w, channels)."""
    assert x.is_contiguous()
    channels = x.shape[-1]
    result = torch.empty_like(x)
    block, rows = tile_shape(channels)
    _image_norm[(-(-x.numel() // (channels * rows)),)](
        x, x if residual is None else residual, x if bias is None else bias, weight, result,
        x.numel(), channels, channels**0.5, _SHORTEST,
        ROWS=rows, BLOCK=block, HAS_RESIDUAL=residual is not None, HAS_BIAS=bias is not None, SILU=silu, num_warps=4,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def tile_shape(channels: int) -> tuple[int, int]:
    """Returns what a program of four warps holds: channels (a power of two, at least `channels`) and pixels."""
    block = power_of_2(channels)
    return block, max(1, _TILE // block)


@Kernel
def _image_norm(
    x_ptr, residual_ptr, bias_ptr, weight_ptr, y_ptr, elements, channels, scale, shortest,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Norms ROWS consecutive pixels, all their channels, (ROWS, BLOCK); with a residual the sum is written to x."""
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    offsets = pixel[:, None] * channels + channel[None, :]
    # elements, not pixels, since 16 nearly always divides them, and Triton compiles anew for a number that it does not
    mask = (offsets < elements) & (channel < channels)[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + offsets, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
        total = x.to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + offsets, total, mask=mask)
        x = total.to(tl.float32)  # the norm sees the sum as it is stored
    weight = tl.load(weight_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, axis=1)), shortest, propagate_nan=tl.PropagateNan.ALL)
    y = x * (1.0 / length)[:, None] * (weight * scale)[None, :]
    if SILU:
        y *= tl.sigmoid(y)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@Kernel
def _add_residual(
    x_ptr, residual_ptr, bias_ptr, elements, channels,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Adds to ROWS consecutive pixels, all their channels, (ROWS, BLOCK)."""
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    offsets = pixel[:, None] * channels + channel[None, :]
    mask = (offsets < elements) & (channel < channels)[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, cache_modifier=".cg").to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    x += tl.load(residual_ptr + offsets, mask=mask, cache_modifier=".cg").to(tl.float32)
    tl.store(x_ptr + offsets, x.to(x_ptr.dtype.element_ty), mask=mask)
