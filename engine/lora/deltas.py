"""What an adapter adds to a rank's shard of one layer's weight: read, held and multiplied with.

A delta stands for ΔW, (rows, columns) of the shard, with the adapter's scale and without a strength.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from engine.checkpoint.files.stored import Bounds
from engine.checkpoint.layouts.tensors import COLUMNS, ROWS
from engine.lora.families import Change, Family, blocks_of, shifted
from engine.parallel.group import Group


class Delta(ABC):
    """Holds ΔW of a shard, (rows, columns), in one of the forms below."""

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """Returns ΔW, (rows, columns) float32."""

    @abstractmethod
    def add_to(self, y: torch.Tensor, x: torch.Tensor, strength: float) -> None:
        """Adds strength · x ΔWᵀ to y, (tokens, rows), in place. x: (tokens, columns), for `LowRank` already multiplied
        with `down`, (tokens, rank)."""

    @abstractmethod
    def scale_rows(self, factors: torch.Tensor) -> None:
        """Multiplies ΔW's rows by `factors`, (rows, 1) float32."""


class Dense(Delta):
    """Holds ΔW as it is, (rows, columns)."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def dense(self) -> torch.Tensor:
        return self.matrix.float()

    def add_to(self, y: torch.Tensor, x: torch.Tensor, strength: float) -> None:
        y.addmm_(x, self.matrix.t(), alpha=strength)

    def scale_rows(self, factors: torch.Tensor) -> None:
        self.matrix = self.matrix * factors


class LowRank(Dense):
    """Holds B A. down: A, (rank, columns); matrix: B, (rows, rank)."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor) -> None:
        super().__init__(up)
        self.down = down

    def dense(self) -> torch.Tensor:
        return super().dense() @ self.down.float()


class Kronecker(Delta):
    """Holds rows and columns of LoKr's kron(first, second) (arXiv 2309.14859), which may begin and end inside a block.

    The product is never built: x, seen as (tokens, first's columns, second's columns), is multiplied with one factor
    after the other, which costs a product with `second` for every column of `first`.
    """

    def __init__(self, first: torch.Tensor, second: torch.Tensor, rows: slice, columns: slice) -> None:
        height, width = second.shape
        # the rows and columns of `first` whose blocks are touched, and where the shard begins in the first of these
        above, left = rows.start // height, columns.start // width
        blocks = first[above : above + blocks_of(rows, height), left : left + blocks_of(columns, width)]
        self._first = blocks.clone()  # so that the rest of `first` is not held
        self._second = second
        self._rows, self._columns = shifted(rows, -above * height), shifted(columns, -left * width)
        self._factors: torch.Tensor | None = None  # (rows, 1)

    def dense(self) -> torch.Tensor:
        window = torch.kron(self._first.float(), self._second.float())[self._rows, self._columns]
        return window if self._factors is None else window * self._factors.float()

    def add_to(self, y: torch.Tensor, x: torch.Tensor, strength: float) -> None:
        blocks, width = self._first.shape[1], self._second.shape[1]
        x = F.pad(x, (self._columns.start, blocks * width - self._columns.stop))
        product = self._first @ (x.unflatten(-1, (blocks, width)) @ self._second.t())
        product = product.flatten(-2)[:, self._rows]
        y.add_(product if self._factors is None else product * self._factors.t(), alpha=strength)

    def scale_rows(self, factors: torch.Tensor) -> None:
        self._factors = factors if self._factors is None else self._factors * factors


def read_delta(change: Change, bounds: Bounds, device: torch.device) -> Delta | None:
    """Reads ΔW of a rank's (rows, columns) in float32, and of the file only what it takes. None for a change of the
    bias alone."""
    rows, columns = shifted(bounds[0], change.rows.start), bounds[1]

    def read(role: str, rows: slice | None = None, columns: slice | None = None) -> torch.Tensor:
        return _read(change, role, device, {0: rows, 1: columns})

    def factor(role: str) -> torch.Tensor:
        return read(role) if role in change.shapes else read(f"{role}_a") @ read(f"{role}_b")

    match change.family:
        case Family.LORA:
            return LowRank(read("down", columns=columns), read("up", rows=rows) * change.scale)
        case Family.LOHA:
            ups = [read(f"hada_{part}_a", rows=rows) for part in ("w1", "w2")]
            downs = [read(f"hada_{part}_b", columns=columns) for part in ("w1", "w2")]
            return _hadamard(ups, downs, change.scale)
        case Family.LOKR:
            return Kronecker(factor("lokr_w1"), factor("lokr_w2") * change.scale, rows, columns)
        case Family.DIFFERENCE:
            return Dense(read("diff", rows, columns))
        case Family.REPLACEMENT:
            return Dense(read("set_weight", rows, columns))
    return None


def read_vector(change: Change, role: str, part: slice, device: torch.device, *, dimension: int = 0) -> torch.Tensor:
    """Reads a slice of what has a number for each of the layer's rows (or with dimension 1 columns): (length,)
    float32."""
    part = shifted(part, change.rows.start) if dimension == 0 else part
    return _read(change, role, device, {dimension: part}).flatten()


def _read(change: Change, role: str, device: torch.device, parts: Mapping[int, slice | None]) -> torch.Tensor:
    """Reads a tensor of the file, by dimension the part that is given, to float32 on the device."""
    bounds = tuple(parts.get(index) or slice(0, length) for index, length in enumerate(change.shapes[role]))
    # a copy even if nothing is converted: what was read may be a view of the file, which others may change
    return change.file.read(change.tensors[role], bounds).to(device, torch.float32, copy=True)


class Changed(NamedTuple):
    """A rank's share of a changed weight, of these bounds. values: W + ΔW, (rows, columns) float32."""

    change: Change
    bounds: Bounds
    values: torch.Tensor


def norm_factors(whole: Sequence[Changed], group: Group) -> list[torch.Tensor]:
    """Returns what to multiply the rows or columns of each W + ΔW with for DoRA's norms: (rows, 1) or (1, columns)
    float32, magnitude / ‖W + ΔW‖ (arXiv 2402.09353, formula 5).

    whole: all weights that the file has as one matrix, whose columns go through all of them; one of them will do where
    magnitudes are those of rows. group: whose ranks have a share of each weight; this is a collective.
    """
    change = whole[0].change
    along, split = (0, ROWS) if change.by_column else (1, COLUMNS)
    squares = [each.values.square().sum(along) for each in whole]
    if change.by_column:
        squares = [torch.stack(squares).sum(0)]
    if change.source.split == split:
        squares = [group.all_reduce(each) for each in squares]
    norms = [each.sqrt() for each in squares] * (len(whole) if change.by_column else 1)
    factors = []
    for each, norm in zip(whole, norms, strict=True):
        part = each.bounds[1 - along]
        magnitude = read_vector(each.change, "magnitude", part, norm.device, dimension=1 - along)
        factors.append(torch.where(norm > 0, magnitude / norm, 1.0).unsqueeze(along))
    return factors


def _hadamard(ups: Sequence[torch.Tensor], downs: Sequence[torch.Tensor], scale: float) -> Delta:
    """Returns LoHa's scale · (B₁A₁) ∘ (B₂A₂) (arXiv 2309.14859) in the smaller form. Its rank is r₁·r₂, its factors the
    products of every pair of columns of the Bs, (rows, rank) each, and of every pair of rows of the As."""
    rows, columns = ups[0].shape[0], downs[0].shape[1]
    rank = downs[0].shape[0] * downs[1].shape[0]
    if rank * (rows + columns) >= rows * columns:
        return Dense((ups[0] @ downs[0]) * (ups[1] @ downs[1]) * scale)
    up = (ups[0][:, :, None] * ups[1][:, None, :]).flatten(1) * scale
    down = (downs[0][:, None, :] * downs[1][None, :, :]).flatten(0, 1)
    return LowRank(down, up)
