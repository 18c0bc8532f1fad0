"""The two gates of Krea 2: SwiGLU's silu(gate) · up, and attention's output times sigmoid(gate)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from engine.kernels.fp8 import Fp8Rows, empty_rows, quantize_rows, row_pointers, store_row
from engine.kernels.jit import kernel, launch_shape

if TYPE_CHECKING:
    import triton.language as tl


def silu_mul(gate_up: torch.Tensor, *, fp8: bool = False) -> torch.Tensor | Fp8Rows:
    """silu(gate) · up of a stacked (tokens, 2 · width) → (tokens, width), with `fp8` as rows for a matrix product."""
    if not gate_up.is_cuda:
        return silu_mul_torch(gate_up, fp8=fp8)
    gate, up = gate_up.chunk(2, dim=-1)
    return gate_mul_triton(up, gate, silu=True, fp8=fp8)


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor, *, fp8: bool = False) -> torch.Tensor | Fp8Rows:
    """x · sigmoid(gate), both (tokens, width), with `fp8` as rows for a matrix product.

    x may come in parts, (parts, tokens, width / parts), as attention's heads do from the ranks that made them.
    """
    return gate_mul_triton(x, gate, silu=False, fp8=fp8) if x.is_cuda else sigmoid_mul_torch(x, gate, fp8=fp8)


def silu_mul_torch(gate_up: torch.Tensor, *, fp8: bool = False) -> torch.Tensor | Fp8Rows:
    gate, up = gate_up.chunk(2, dim=-1)
    result = F.silu(gate.float()).mul_(up)
    return quantize_rows(result, gate_up.dtype) if fp8 else result.to(gate_up.dtype)


def sigmoid_mul_torch(x: torch.Tensor, gate: torch.Tensor, *, fp8: bool = False) -> torch.Tensor | Fp8Rows:
    result = torch.sigmoid(gate.float())
    if x.dim() == 3:
        result.unflatten(1, (x.shape[0], -1)).mul_(x.transpose(0, 1))
    else:
        result.mul_(x)
    return quantize_rows(result, x.dtype) if fp8 else result.to(x.dtype)


def gate_mul_triton(x: torch.Tensor, gate: torch.Tensor, *, silu: bool, fp8: bool) -> torch.Tensor | Fp8Rows:
    """Both gates by the kernel. x and gate: (tokens, width), rows may be strided; or x in parts, contiguous."""
    tokens, width = gate.shape
    in_parts = x.dim() == 3
    assert x.is_contiguous() or not in_parts
    output = empty_rows(tokens, width, x, fp8=fp8)
    values, scales = row_pointers(output)
    block, warps = launch_shape(width)
    _gate_mul[(tokens,)](
        x, gate, values, scales, x.shape[2] if in_parts else x.stride(0), gate.stride(0), width,
        BLOCK=block, SILU=silu, FP8=fp8, IN_PARTS=in_parts, num_warps=warps,
    )  # fmt: skip
    return output


@kernel
def _gate_mul(
    x_ptr, gate_ptr, y_ptr, scale_ptr, x_stride, gate_stride, width,
    BLOCK: tl.constexpr, SILU: tl.constexpr, FP8: tl.constexpr, IN_PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    if IN_PARTS:
        x_ptr += (columns // x_stride * tl.num_programs(0) + row) * x_stride + columns % x_stride
    else:
        x_ptr += row * x_stride + columns
    x = tl.load(x_ptr, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + columns, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    y = x * tl.sigmoid(gate)
    if SILU:
        y *= gate
    store_row(y_ptr, scale_ptr, row, columns, mask, y, width, FP8)
