"""What an adapter adds to a rank's part of one layer's weight: read, held and multiplied with.

A delta stands for ΔW, (rows, columns) of a rank's shard, the scale included and the strength not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from engine.checkpoint.files.stored import Bounds
from engine.checkpoint.layouts.tensors import COLUMNS, ROWS
from engine.lora.families import Change, Family
from engine.parallel.group import Group


class TensorHolder:
    """What has tensors among its attributes."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """By the attributes' names."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def to(self, dtype: torch.dtype) -> None:
        """Hold them in another dtype."""
        for name, tensor in self.tensors().items():
            setattr(self, name, tensor.to(dtype))


class Delta(TensorHolder, ABC):
    """ΔW of a shard, in one of the forms below.

    down: what x is multiplied with first, (rank, columns); those of deltas with the same x may be stacked.
    """

    down: torch.Tensor | None = None

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """ΔW in float32, (rows, columns)."""

    @abstractmethod
    def add_to(self, y: torch.Tensor, x: torch.Tensor, strength: float) -> None:
        """y += strength · x ΔWᵀ, in place. x: (tokens, columns), or (tokens, rank) if it was multiplied with `down`;
        y: (tokens, rows)."""

    @abstractmethod
    def scale_rows(self, factors: torch.Tensor) -> None:
        """Multiply ΔW's rows by `factors`, (rows, 1) float32."""


class LowRank(Delta):
    """B A. down: A, (rank, columns); up: B, (rows, rank)."""

    down: torch.Tensor

    def __init__(self, down: torch.Tensor, up: torch.Tensor) -> None:
        self.down, self.up = down, up

    def dense(self) -> torch.Tensor:
        return self.up.float() @ self.down.float()

    def add_to(self, y: torch.Tensor, x: torch.Tensor, strength: float) -> None:
        y.addmm_(x, self.up.t(), alpha=strength)

    def scale_rows(self, factors: torch.Tensor) -> None:
        self.up = self.up * factors


class Dense(Delta):
    """A matrix, (rows, columns)."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def dense(self) -> torch.Tensor:
        return self.matrix.float()

    def add_to(self, y: torch.Tensor, x: torch.Tensor, strength: float) -> None:
        y.addmm_(x, self.matrix.t(), alpha=strength)

    def scale_rows(self, factors: torch.Tensor) -> None:
        self.matrix = self.matrix * factors


class Kronecker(Delta):
    """A window of kron(first, second): rows and columns of the product, which may begin and end inside a block.

    It is never built: x, seen as (tokens, first's columns, second's columns), is multiplied with one factor after the
    other, which costs a product with `second` for every column of `first`.
    """

    def __init__(self, first: torch.Tensor, second: torch.Tensor, rows: slice, columns: slice) -> None:
        height, width = second.shape
        # the rows and columns of `first` whose blocks the window touches, and where it begins in the first of them
        above, left = rows.start // height, columns.start // width
        blocks = first[above : -(-rows.stop // height), left : -(-columns.stop // width)]
        self._first = blocks.clone()  # so that the rest of `first` is not held
        self._second = second
        self._rows = slice(rows.start - above * height, rows.stop - above * height)
        self._columns = slice(columns.start - left * width, columns.stop - left * width)
        self._factors: torch.Tensor | None = None

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
    """ΔW of a rank's rows and columns, in float32, reading only what it needs. None for a change of the bias alone."""
    rows, columns = shifted(bounds[0], change.rows.start), bounds[1]
    shapes = change.shapes

    def read(role: str, rows: slice | None = None, columns: slice | None = None) -> torch.Tensor:
        height, width = shapes[role]
        bounds = rows or slice(0, height), columns or slice(0, width)
        return _read(change, role, bounds, device)

    def factor(role: str) -> torch.Tensor:
        return read(role) if role in shapes else read(f"{role}_a") @ read(f"{role}_b")

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
    """A slice of a tensor with a number for each of the layer's rows or columns: (length,) float32."""
    bounds = [slice(0, length) for length in change.shapes[role]]
    bounds[dimension] = shifted(part, change.rows.start) if dimension == 0 else part
    return _read(change, role, tuple(bounds), device).flatten()


def _read(change: Change, role: str, bounds: Bounds, device: torch.device) -> torch.Tensor:
    # a copy even if nothing is converted: what was read may be a view of the file, which others may change
    return change.file.read(change.tensors[role], bounds).to(device, torch.float32, copy=True)


def shifted(part: slice, start: int) -> slice:
    return slice(start + part.start, start + part.stop)


def norm_factors(change: Change, changed: torch.Tensor, bounds: Bounds, group: Group) -> torch.Tensor:
    """DoRA: what gives the rows or columns of W + ΔW the norms that its magnitudes say, (rows, 1) or (1, columns)
    float32. changed: W + ΔW of a rank's `bounds`; group: over whose ranks the layer is split."""
    along, split = (0, ROWS) if change.by_column else (1, COLUMNS)
    magnitude = read_vector(change, "magnitude", bounds[1 - along], changed.device, dimension=1 - along)
    norms = changed.square().sum(along)
    if change.source.split == split:
        norms = group.all_reduce(norms)
    norms = norms.sqrt()
    return torch.where(norms > 0, magnitude / norms, 1.0).unsqueeze(along)


def _hadamard(ups: Sequence[torch.Tensor], downs: Sequence[torch.Tensor], scale: float) -> Delta:
    """(B₁A₁) ∘ (B₂A₂): a matrix of rank r₁·r₂, whose factors are the products of every pair of columns of the Bs and
    of every pair of rows of the As. Held as whichever is smaller."""
    rows, columns = ups[0].shape[0], downs[0].shape[1]
    rank = downs[0].shape[0] * downs[1].shape[0]
    if rank * (rows + columns) >= rows * columns:
        return Dense((ups[0] @ downs[0]) * (ups[1] @ downs[1]) * scale)
    up = (ups[0][:, :, None] * ups[1][:, None, :]).flatten(1) * scale
    down = (downs[0][:, None, :] * downs[1][None, :, :]).flatten(0, 1)
    return LowRank(down, up)
