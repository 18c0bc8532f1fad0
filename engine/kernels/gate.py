"""The two gates of Krea 2: SwiGLU's silu(gate) · up, and attention's output times sigmoid(gate)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from engine.kernels.fp8 import Fp8Rows, empty_rows, quantize_rows, row_pointers, store_row
from engine.kernels.jit import Kernel, Operation, launch_shape, tl


@Operation
def silu_mul(gate_up: torch.Tensor, *, fp8: bool = False) -> torch.Tensor | Fp8Rows:
    """Multiplies silu(gate) · up of a stacked gate | up, (tokens, 2 · width) → (tokens, width), with `fp8` as rows for
    a matrix product."""
    gate, up = gate_up.chunk(2, dim=-1)
    result = F.silu(gate.float()).mul_(up)
    return quantize_rows(result, gate_up.dtype) if fp8 else result.to(gate_up.dtype)


@silu_mul.on_gpu
def _silu_mul_triton(gate_up, *, fp8=False) -> torch.Tensor | Fp8Rows:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate_mul_triton(up, gate, silu=True, fp8=fp8)


@Operation
def sigmoid_mul(
    x: torch.Tensor, gate: torch.Tensor, *, fp8: bool = False, out: torch.Tensor | Fp8Rows | None = None, first: int = 0
) -> torch.Tensor | Fp8Rows:
    """Multiplies x · sigmoid(gate) → (tokens, width), with `fp8` as rows for a matrix product.

    gate: (tokens, width), rows of any stride; x: the same or (tokens, groups, width / groups) with any strides but the
    last. out: of `empty_rows`, whose rows from `first` on are written to, and which is returned.
    """
    result = torch.sigmoid(gate.float()).view(x.shape).mul_(x).view(gate.shape)
    made = quantize_rows(result, x.dtype) if fp8 else result.to(x.dtype)
    if out is None:
        return made
    for target, part in zip(row_pointers(out), row_pointers(made), strict=True):
        target[first : first + x.shape[0]] = part
    return out


def gate_mul_triton(x, gate, *, silu=False, fp8=False, out=None, first=0) -> torch.Tensor | Fp8Rows:
    """Launches the kernel of both gates, a program a row. As `sigmoid_mul`, with `silu` also times gate."""
    tokens, width = gate.shape
    output = empty_rows(tokens, width, x, fp8=fp8) if out is None else out
    values, scales = (part[first:] for part in row_pointers(output))
    side_by_side = x.dim() == 2 or x.stride(1) == x.shape[2]
    assert x.stride(-1) == 1
    block, warps = launch_shape(width)
    _gate_mul[(tokens,)](
        x, gate, values, scales, x.stride(0), 0 if side_by_side else x.stride(1), gate.stride(0), width,
        GROUP=0 if side_by_side else x.shape[2], BLOCK=block, SILU=silu, FP8=fp8, num_warps=warps,
    )  # fmt: skip
    return output


sigmoid_mul.on_gpu(gate_mul_triton)


@partial(Kernel, unaligned=("scale_ptr",))  # of rows anywhere in a result
def _gate_mul(
    x_ptr, gate_ptr, y_ptr, scale_ptr, x_stride, group_stride, gate_stride, width,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Multiplies one row, all its columns. GROUP: columns of x that lie side by side, 0 if all do."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    x_columns = columns
    if GROUP > 0:
        x_columns = (columns // GROUP).to(tl.int64) * group_stride + columns % GROUP
    x = tl.load(x_ptr + row * x_stride + x_columns, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + columns, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    y = x * tl.sigmoid(gate)
    if SILU:
        y *= gate
    store_row(y_ptr, scale_ptr, row, columns, mask, y, width, FP8)
