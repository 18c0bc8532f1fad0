"""int8 rows with a float16 scale for every 32 columns, as GGUF's Q8_0 has: weights in half of bfloat16's memory.

They are dequantised for each product, which reads a byte a number, writes two and reads these again: on few tokens,
where reading weights is all that counts, five bytes instead of two.
"""

from __future__ import annotations

import torch

from engine.kernels.jit import Kernel, Operation, tl

GROUP = 32  # columns that share a scale
_LARGEST = 127
_BLOCK = 4096  # numbers of a program: 32 a thread
_NUMBERS_AT_ONCE = 1 << 22  # that the reference makes in float32


def quantize_groups(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divides each group by its largest magnitude / 127: (rows, width), a multiple of 32, → int8 (rows, width) and
    float16 (rows, width / 32). A scale is at most 65504 and at least float16's smallest normal number."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    limits = torch.finfo(torch.float16)
    scales = (groups.abs().amax(dim=-1) / _LARGEST).clamp(limits.smallest_normal, limits.max).half()
    values = (groups / scales.float()[..., None]).round_().clamp_(-_LARGEST, _LARGEST)
    return values.to(torch.int8).flatten(-2), scales


@Operation
def dequantize_groups(values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns what int8 values, (rows, width), and float16 scales, (rows, width / 32), stand for, in `dtype`."""
    rows, width = values.shape
    result = values.new_empty((rows, width), dtype=dtype)
    at_once = max(1, _NUMBERS_AT_ONCE // width)
    for first in range(0, rows, at_once):
        chunk = slice(first, first + at_once)
        wide = values[chunk].float().unflatten(-1, (-1, GROUP)).mul_(scales[chunk].float()[..., None])
        result[chunk] = wide.flatten(-2)
    return result


@dequantize_groups.on_gpu
def dequantize_groups_triton(values, scales, dtype) -> torch.Tensor:
    """Launches a program for each `_BLOCK` numbers. values and scales are contiguous."""
    result = torch.empty(values.shape, dtype=dtype, device=values.device)
    _dequantize_groups[(-(-values.numel() // _BLOCK),)](
        values, scales, result, values.numel(), GROUP=GROUP, BLOCK=_BLOCK, num_warps=4
    )
    return result


@Kernel
def _dequantize_groups(
    values_ptr, scales_ptr, y_ptr, elements,
    GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Multiplies BLOCK consecutive numbers of all `elements`, (BLOCK / GROUP, GROUP), with their groups' scales."""
    group = tl.program_id(0).to(tl.int64) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    column = tl.arange(0, GROUP)
    offsets = group[:, None] * GROUP + column[None, :]
    mask = offsets < elements
    values = tl.load(values_ptr + offsets, mask=mask, other=0, cache_modifier=".cg").to(tl.float32)
    scales = tl.load(scales_ptr + group, mask=group * GROUP < elements, other=0.0).to(tl.float32)
    tl.store(y_ptr + offsets, (values * scales[:, None]).to(y_ptr.dtype.element_ty), mask=mask)
