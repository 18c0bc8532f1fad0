"""The two gates of Krea 2: SwiGLU's silu(gate) · up, and attention's output times sigmoid(gate)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from engine.kernels.fp8 import Fp8Rows, empty_rows, quantize_rows, row_pointers, store_row
from engine.kernels.jit import Kernel, Operation, launch_shape, tl


@Operation
def silu_mul(gate_up: torch.Tensor, *, fp8: bool = False) -> torch.Tensor | Fp8Rows:
    """silu(gate) · up of a stacked (tokens, 2 · width) → (tokens, width), with `fp8` as rows for a matrix product."""
    gate, up = gate_up.chunk(2, dim=-1)
    result = F.silu(gate.float()).mul_(up)
    return quantize_rows(result, gate_up.dtype) if fp8 else result.to(gate_up.dtype)


@silu_mul.on_gpu
def _silu_mul_triton(gate_up, *, fp8=False) -> torch.Tensor | Fp8Rows:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate_mul_triton(up, gate, silu=True, fp8=fp8)


@Operation
def sigmoid_mul(
    x: torch.Tensor,
    gate: torch.Tensor,
    *,
    fp8: bool = False,
    out: torch.Tensor | Fp8Rows | None = None,
    first: int = 0,
) -> torch.Tensor | Fp8Rows:
    """x · sigmoid(gate), gate (tokens, width), x the same or (tokens, groups, width / groups) of any strides but the
    last, with `fp8` as rows for a matrix product. out: of `empty_rows`, to whose rows from `first` on it is written."""
    result = torch.sigmoid(gate.float()).view(x.shape).mul_(x).view(gate.shape)
    made = quantize_rows(result, x.dtype) if fp8 else result.to(x.dtype)
    if out is None:
        return made
    last = first + x.shape[0]
    if isinstance(out, Fp8Rows):
        assert isinstance(made, Fp8Rows)
        out.values[first:last], out.scales[first:last] = made.values, made.scales
    else:
        assert not isinstance(made, Fp8Rows)
        out[first:last] = made
    return out


def gate_mul_triton(
    x: torch.Tensor,
    gate: torch.Tensor,
    *,
    silu: bool = False,
    fp8: bool = False,
    out: torch.Tensor | Fp8Rows | None = None,
    first: int = 0,
) -> torch.Tensor | Fp8Rows:
    """Both gates by the kernel, as `sigmoid_mul`. gate's rows may be strided."""
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
