"""fp8 rows and their matrix product: e4m3 values, one float32 scale for every row of either side."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from engine.kernels.jit import Kernel, tl

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest e4m3; casting does not saturate; kernels repeat this and the next as literals
SMALLEST_SCALE = 1e-12  # of a row of zeros
FP8_MULTIPLE = 16  # both dimensions of a weight must be one, says torch's scaled matrix product


class Fp8Rows(NamedTuple):
    """Stands for values · scales. values: (rows, width) e4m3; scales: (rows, 1) float32; dtype: of what they stand for
    and of a product with them."""

    values: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype

    def dequantize(self) -> torch.Tensor:
        """Returns the (rows, width) float32 tensor."""
        return self.values.float() * self.scales


def quantize_rows(x: torch.Tensor, dtype: torch.dtype | None = None) -> Fp8Rows:
    """Divides each row by its own largest magnitude / 448. x: (rows, width), standing for a tensor of `dtype`."""
    wide = x.float()
    scales = (wide.abs().amax(dim=-1, keepdim=True) / FP8_MAX).clamp_(min=SMALLEST_SCALE)
    return Fp8Rows((wide / scales).clamp_(-FP8_MAX, FP8_MAX).to(FP8), scales, dtype or x.dtype)


def fp8_linear(x: Fp8Rows, weight: Fp8Rows, out: torch.Tensor | None = None) -> torch.Tensor:
    """Multiplies x Wᵀ: (tokens, in) and (out, in) → (tokens, out) in x's dtype, written to `out` if it is given.

    On a GPU by its fp8 tensor cores, whose fast accumulation keeps about 14 bits between promotions: finer than the
    operands. The dtype is bfloat16 there, all that they write with row-wise scales. On a CPU in float32.
    """
    if x.values.device.type == "cpu":
        y = F.linear(x.dequantize(), weight.dequantize()).to(x.dtype)
        return y if out is None else out.copy_(y)
    if not x.values.shape[0]:  # which the library does not say that it takes
        return x.values.new_empty((0, weight.values.shape[0]), dtype=x.dtype)
    return scaled_mm(x, weight, out)


def scaled_mm(x: Fp8Rows, weight: Fp8Rows, out: torch.Tensor | None = None) -> torch.Tensor:
    """Computes `fp8_linear` by what `F.scaled_mm` calls, which takes no `out`."""
    row_wise = [F.ScalingType.RowWise.value]
    no_swizzle: list[int] = []
    left, right = ([x.scales], row_wise, no_swizzle), ([weight.scales.t()], row_wise, no_swizzle)
    no_bias = None
    return torch._scaled_mm_v2(
        x.values, weight.values.t(), *left, *right, no_bias, x.dtype, use_fast_accum=True, out=out
    )


def empty_rows(tokens: int, width: int, like: torch.Tensor, *, fp8: bool) -> torch.Tensor | Fp8Rows:
    """Allocates what a kernel writes a (tokens, width) result to: in `like`'s dtype, or rows for an fp8 product."""
    values = like.new_empty((tokens, width), dtype=FP8 if fp8 else like.dtype)
    return Fp8Rows(values, like.new_empty((tokens, 1), dtype=torch.float32), like.dtype) if fp8 else values


def row_pointers(rows: torch.Tensor | Fp8Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns values and scales for `store_row`, for a tensor without scales twice itself."""
    return (rows.values, rows.scales) if isinstance(rows, Fp8Rows) else (rows, rows)


@Kernel
def store_row(y_ptr, scale_ptr, row, columns, mask, y, width, FP8: tl.constexpr):
    """Writes a program's `y`, (columns,) float32, to its row of a contiguous (rows, width) matrix: rounded to the
    matrix's dtype, or with FP8 as e4m3 with the row's scale in scale_ptr, (rows,)."""
    pointers = y_ptr + row * width + columns
    if FP8:
        # magnitudes are ordered as their bits are, with NaN above all, which a maximum of floats would leave out
        magnitudes = tl.where(mask, y, 0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.max(magnitudes, axis=0).to(tl.float32, bitcast=True)
        scale = tl.maximum(largest * (1.0 / 448.0), 1e-12, propagate_nan=tl.PropagateNan.ALL)
        y = tl.minimum(tl.maximum(y / scale, -448.0), 448.0)
        tl.store(scale_ptr + row, scale)
    tl.store(pointers, y.to(y_ptr.dtype.element_ty), mask=mask)
