"""Linear layers, whole and split over a group. Parameters are filled by `engine.checkpoint`, never initialised.

Weights are (out, in); what is multiplied is (rows, in), a row a token, and may be `Fp8Rows` where a layer `takes_fp8`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from engine.kernels.fp8 import FP8, Fp8Rows, fp8_linear
from engine.kernels.int8 import dequantize_groups
from engine.parallel.group import Group
from engine.parallel.row_share import RowShare

# Adds to a layer's output y (rows, out), in place, what LoRAs compute from its input x (rows, in): called with (x, y).
SidePath = Callable[[torch.Tensor | Fp8Rows, torch.Tensor], None]


class Linear(nn.Module):
    """y = x Wᵀ + b, whole on every rank: (rows, in) → (rows, out)."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.side_path: SidePath | None = None

    def dequantize(self, rows: slice = slice(None)) -> torch.Tensor:
        """Give the weight, or some of its rows, as (rows, in) float32."""
        return self.weight[rows].float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.side_path is not None:
            self.side_path(x, y)
        return y


class ParallelMatrix(nn.Module):
    """A rank's part of a matrix, in the model's dtype or in 8 bits: e4m3 with a float32 scale a row, weight_scale
    (out, 1), or int8 with a float16 scale for every 32 columns of a row, weight_scale (out, in / 32)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.weight_scale: nn.Parameter | None = None
        self.takes_fp8 = False  # whether x should come as `Fp8Rows`
        self.side_path: SidePath | None = None

    def expect_eight_bit(self, scales: torch.Tensor, *, fp8_product: bool) -> None:
        """Expect 8-bit weights with scales of this shape. fp8_product: they are multiplied by fp8 rows."""
        self.weight_scale = nn.Parameter(scales, requires_grad=False)
        self.takes_fp8 = fp8_product

    def multiply(
        self, x: torch.Tensor | Fp8Rows, out: torch.Tensor | None = None, rows: slice = slice(None)
    ) -> torch.Tensor:
        """Compute x Wᵀ: (rows, in) → (rows, out), written to `out` if that is given. rows: of W, if not all."""
        weight = self.weight[rows]
        scales = None if self.weight_scale is None else self.weight_scale[rows]
        if isinstance(x, Fp8Rows):
            assert scales is not None
            return fp8_linear(x, Fp8Rows(weight, scales, x.dtype), out)
        if scales is None:
            return _product(x, weight, out)
        if weight.dtype == FP8:  # a row's scale is an output's: the weights need not be multiplied
            return _product(x, weight.to(x.dtype), out).mul_(scales.t())
        return _product(x, dequantize_groups(weight, scales, x.dtype), out)

    def partial_output(self, x: torch.Tensor | Fp8Rows, out: torch.Tensor | None = None) -> torch.Tensor:
        """Compute this rank's summand of the output, with what the side path adds: (rows, in) → (rows, out)."""
        y = self.multiply(x, out)
        if self.side_path is not None:
            self.side_path(x, y)
        return y

    def dequantize(self, rows: slice = slice(None)) -> torch.Tensor:
        """Give the matrix, or some of its rows, as (rows, in) float32."""
        weight = self.weight[rows]
        if self.weight_scale is None:
            return weight.float()
        scales = self.weight_scale[rows]
        if weight.dtype == FP8:
            return weight.float().mul_(scales)
        return dequantize_groups(weight, scales, torch.float32)


class ColumnParallelLinear(ParallelMatrix):
    """Several matrices that share their input, stacked into one whose output rows are split over the group.

    out_features: the heights of the stacked matrices, before they are split. Each is split evenly, so a rank's output
    is [its part of the first | its part of the second | …]: (rows, in) → (rows, sum(out_features) / size).
    """

    def __init__(self, in_features: int, out_features: Sequence[int], group: Group) -> None:
        super().__init__(in_features, sum(rows // group.size for rows in out_features))

    def forward(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        return self.partial_output(x)

    def in_two(self, x: torch.Tensor | Fp8Rows, columns: int) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
        """Compute the first `columns` columns of what `forward` gives, and return a function that computes the others,
        later: (rows, in) → (rows, columns), (rows, others). A side path adds to all, so with one all are computed now.
        """
        if self.side_path is not None:
            y = self(x)
            return y[:, :columns], lambda: y[:, columns:]
        return self.multiply(x, rows=slice(columns)), lambda: self.multiply(x, rows=slice(columns, None))


class RowParallelLinear(ParallelMatrix):
    """y = x Wᵀ with W's input columns split over the group: x has a rank's columns, y is the sum over the ranks."""

    def __init__(self, in_features: int, out_features: int, group: Group) -> None:
        super().__init__(in_features // group.size, out_features)
        self.group = group

    def forward(self, x: torch.Tensor | Fp8Rows, share: RowShare | None = None) -> torch.Tensor:
        """Multiply (rows, in / size) → (rows, out), the same on every rank; with a `share` whose ranks divide the rows
        between matrices, (multiplied rows, in / size) → (own rows, out)."""
        if share is None or share.tensor.size == 1:
            return self.group.all_reduce(self.partial_output(x))
        rows, filled = share.multiplied.tokens, share.filled_rows
        if filled == rows:
            return share.reduce_scatter(self.partial_output(x))
        # written to the first rows of a matrix that has some more, since filling the product up would copy it
        y = self.weight.new_empty((filled, self.weight.shape[0]), dtype=x.dtype)
        self.partial_output(x, y[:rows])
        return share.reduce_scatter(y)


def _product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight) if out is None else torch.mm(x, weight.t(), out=out)
