"""Linear layers, whole and split over a group. Parameters are filled by `engine.checkpoint`, never initialised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from engine.kernels.fp8 import FP8, Fp8Rows, fp8_linear
from engine.parallel.group import Group


class Linear(nn.Module):
    """y = x Wᵀ + b, whole on every rank."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class _Matrix(nn.Module):
    """A rank's part of a matrix, as it is or, after loading, as fp8 rows with a scale each."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.weight_scale: nn.Parameter | None
        self.register_parameter("weight_scale", None)

    @property
    def takes_fp8(self) -> bool:
        """Whether x should come as `Fp8Rows`."""
        return self.weight.dtype == FP8

    def multiply(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        if isinstance(x, Fp8Rows):
            assert self.weight_scale is not None
            return fp8_linear(x, Fp8Rows(self.weight, self.weight_scale, x.dtype))
        return F.linear(x, self.weight)


class ColumnParallelLinear(_Matrix):
    """Several matrices that share their input, stacked into one whose output rows are split over the group.

    `out_features` lists the stacked matrices' whole heights; every one is split evenly, so a rank's output is
    [its share of the first | its share of the second | …], (tokens, sum(out_features) / size).
    """

    def __init__(self, in_features: int, out_features: Sequence[int], group: Group) -> None:
        super().__init__(in_features, sum(rows // group.size for rows in out_features))

    def forward(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        return self.multiply(x)


class RowParallelLinear(_Matrix):
    """y = x Wᵀ with W's input columns split over the group: x is a rank's share, y the whole sum on every rank."""

    def __init__(self, in_features: int, out_features: int, group: Group) -> None:
        super().__init__(in_features // group.size, out_features)
        self.group = group

    def forward(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        return self.group.all_reduce(self.multiply(x))
