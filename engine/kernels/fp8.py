"""fp8 rows and their matrix product: e4m3 values, one float32 scale for every row of either side."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from engine.kernels.jit import Kernel, tl

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest e4m3; casting does not saturate
SMALLEST_SCALE = 1e-12  # of a row of zeros
FP8_MULTIPLE = 16  # both dimensions of a weight must be one, says torch's scaled matrix product


class Fp8Rows(NamedTuple):
    """values · scales is the tensor meant. values: (rows, width) e4m3; scales: (rows, 1) float32.

    dtype: of the tensor that they stand for, in which a product with them comes out.
    """

    values: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype

    def dequantize(self) -> torch.Tensor:
        """(rows, width) float32."""
        return self.values.float() * self.scales


def quantize_rows(x: torch.Tensor, dtype: torch.dtype | None = None) -> Fp8Rows:
    """Each row over its own largest magnitude / 448. x: (rows, width), standing for a tensor of `dtype`."""
    wide = x.float()
    scales = (wide.abs().amax(dim=-1, keepdim=True) / FP8_MAX).clamp_(min=SMALLEST_SCALE)
    return Fp8Rows((wide / scales).clamp_(-FP8_MAX, FP8_MAX).to(FP8), scales, dtype or x.dtype)


def fp8_linear(x: Fp8Rows, weight: Fp8Rows, out: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ: (tokens, in) and (out, in) → (tokens, out) in x's dtype, written to `out` if there is one.

    On a GPU by its fp8 tensor cores, whose fast accumulation keeps about 14 bits between promotions: finer than the
    operands. The dtype is bfloat16 there, all that they write with row-wise scales. On a CPU in float32.
    """
    if x.values.device.type == "cpu":
        y = F.linear(x.dequantize(), weight.dequantize()).to(x.dtype)
        return y if out is None else out.copy_(y)
    if not x.values.shape[0]:  # nobody says that the library takes no rows
        return x.values.new_empty((0, weight.values.shape[0]), dtype=x.dtype)
    return scaled_mm(x, weight, out)


def scaled_mm(x: Fp8Rows, weight: Fp8Rows, out: torch.Tensor | None = None) -> torch.Tensor:
    """`fp8_linear` by what `F.scaled_mm` calls, which does not hand on where to write."""
    row_wise = [F.ScalingType.RowWise.value]
    return torch._scaled_mm_v2(
        x.values,
        weight.values.t(),
        [x.scales],
        row_wise,
        [],  # no swizzle
        [weight.scales.t()],
        row_wise,
        [],
        None,  # no bias
        x.dtype,
        use_fast_accum=True,
        out=out,
    )


def empty_rows(tokens: int, width: int, like: torch.Tensor, *, fp8: bool) -> torch.Tensor | Fp8Rows:
    """What a kernel writes a (tokens, width) result to: in `like`'s dtype, or as rows for an fp8 matrix product."""
    if not fp8:
        return like.new_empty((tokens, width))
    return Fp8Rows(
        like.new_empty((tokens, width), dtype=FP8), like.new_empty((tokens, 1), dtype=torch.float32), like.dtype
    )


def row_pointers(rows: torch.Tensor | Fp8Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and scales for `store_row`, which does not touch the scales of rows that have none."""
    return (rows.values, rows.scales) if isinstance(rows, Fp8Rows) else (rows, rows)


@Kernel
def store_row(y_ptr, scale_ptr, row, columns, mask, y, width, FP8: tl.constexpr):
    """Write float32 `y` to a contiguous (rows, width) matrix: rounded to its dtype, or as fp8 with the row's scale."""
    pointers = y_ptr + row * width + columns
    if FP8:
        # Magnitudes are ordered as their bits are, with NaN above all, which a maximum of floats would leave out.
        magnitudes = tl.where(mask, y, 0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.max(magnitudes, axis=0).to(tl.float32, bitcast=True)
        scale = tl.maximum(largest * (1.0 / 448.0), 1e-12, propagate_nan=tl.PropagateNan.ALL)
        y = tl.minimum(tl.maximum(y / scale, -448.0), 448.0)
        tl.store(scale_ptr + row, scale)
    tl.store(pointers, y.to(y_ptr.dtype.element_ty), mask=mask)
