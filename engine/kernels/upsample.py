"""Nearest-neighbour upsampling of an image: every pixel becomes two by two."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine.kernels.image_norm import tile_shape
from engine.kernels.jit import Kernel, Operation, tl


@Operation
def upsample(x: torch.Tensor) -> torch.Tensor:
    """Doubles an image's sides: (images, channels, h, w) → (images, channels, 2h, 2w), in memory like x, on a GPU
    channels_last."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest-exact")


@upsample.on_gpu
def upsample_triton(x) -> torch.Tensor:
    """Launches a program for each part of a row of pixels. x is copied first if it is not channels_last."""
    # torch's own kernel for channels_last moves one element a thread, each after several integer divisions
    images, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).contiguous()
    result = x.new_empty((images, 2 * height, 2 * width, channels))
    block, columns = tile_shape(channels)
    _upsample[(images * height, -(-width // columns))](
        x, result, width * channels, channels, COLUMNS=columns, BLOCK=block, num_warps=4
    )
    return result.permute(0, 3, 1, 2)


@Kernel
def _upsample(x_ptr, y_ptr, row_size, channels, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Copies COLUMNS pixels of one row, all their channels, to two pixels each of two rows. row_size: w · channels."""
    row = tl.program_id(0).to(tl.int64)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    offsets = column * channels + channel
    mask = (offsets < row_size) & (channel < channels)
    x = tl.load(x_ptr + row * row_size + offsets, mask=mask, cache_modifier=".cg")
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            target = (2 * row + down) * (2 * row_size) + (2 * column + right) * channels + channel
            tl.store(y_ptr + target, x, mask=mask)
