"""Linear layers, whole and split over a group. Parameters are filled by `engine.checkpoint`, never initialised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from engine.parallel.group import Group


class Linear(nn.Module):
    """y = x Wᵀ + b, whole on every rank."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class ColumnParallelLinear(nn.Module):
    """Several matrices that share their input, stacked into one whose output rows are split over the group.

    `out_features` lists the stacked matrices' whole heights; every one is split evenly, so a rank's output is
    [its share of the first | its share of the second | …], (tokens, sum(out_features) / size).
    """

    def __init__(self, in_features: int, out_features: Sequence[int], group: Group) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sum(rows // group.size for rows in out_features), in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


class RowParallelLinear(nn.Module):
    """y = x Wᵀ with W's input columns split over the group: x is a rank's share, y the whole sum on every rank."""

    def __init__(self, in_features: int, out_features: int, group: Group) -> None:
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(torch.empty(out_features, in_features // group.size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.group.all_reduce(F.linear(x, self.weight))
