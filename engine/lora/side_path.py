"""Adapters beside a layer: what they add to its output is computed from its input, and its weight stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from engine.kernels.fp8 import Fp8Rows
from engine.lora.deltas import Delta, LowRank

# Ids of adapters with their strengths, none zero, in order: what a result depends on.
Loras = tuple[tuple[int, float], ...]
# By an adapter's id: slices of a forward's rows in which it is in force, and its strength there.
Runs = Mapping[int, Sequence[tuple[slice, float]]]


@dataclass
class InForce:
    """Which adapters the current forward applies. rows: by the kind of rows. segments: of each of the batch's segments,
    in order, or of all that there is."""

    rows: Mapping[str, Runs] = field(default_factory=dict)
    segments: Sequence[Loras] = ()


@dataclass
class Piece:
    """What one adapter does to one of the matrices that are stacked in a layer.

    rows: the matrix's rows in the rank's parameter, which are columns of the output. gain: multiplies the layer's own
    output, a number or one for each row, (rows,); bias: (rows,).
    """

    rows: slice
    delta: Delta | None
    gain: torch.Tensor | float | None = None
    bias: torch.Tensor | None = None


class LayerAdapter:
    """Applies one adapter to one layer. The low-rank pieces' A are stacked, so that x is read once for all of them.
    bytes: of all its tensors."""

    def __init__(self, pieces: Sequence[Piece], dtype: torch.dtype) -> None:
        """Takes pieces in float32, and holds them in `dtype`."""
        self._pieces = pieces
        self.needs_output = any(piece.gain is not None for piece in pieces)
        self.bytes = 0
        for holder in (holder for piece in pieces for holder in (piece, piece.delta) if holder is not None):
            for name, value in vars(holder).items():
                if isinstance(value, torch.Tensor):
                    converted = value.to(dtype)
                    setattr(holder, name, converted)
                    self.bytes += converted.nbytes
        low_rank = [piece.delta for piece in pieces if isinstance(piece.delta, LowRank)]
        self._ranks = [delta.down.shape[0] for delta in low_rank]
        self._down = torch.cat([delta.down for delta in low_rank]) if low_rank else None  # (sum of ranks, columns)
        if self._down is not None:
            for delta, part in zip(low_rank, self._down.split(self._ranks), strict=True):
                delta.down = part  # else its numbers would be held twice

    def add_to(self, y: torch.Tensor, x: torch.Tensor, output: torch.Tensor | None, strength: float) -> None:
        """Adds strength · change to y, in place.

        y: (tokens, out); x: (tokens, in); output: x Wᵀ without a bias, (tokens, out), if `needs_output`.
        """
        hidden = iter(() if self._down is None else (x @ self._down.t()).split(self._ranks, dim=1))
        for piece in self._pieces:
            part = y[:, piece.rows]
            if piece.gain is not None:
                assert output is not None
                part.add_(output[:, piece.rows] * piece.gain, alpha=strength)
            if piece.delta is not None:
                piece.delta.add_to(part, next(hidden) if isinstance(piece.delta, LowRank) else x, strength)
            if piece.bias is not None:
                part.add_(piece.bias, alpha=strength)


class SidePath:
    """Adds what a layer's loaded adapters do to its output."""

    def __init__(self, in_force: InForce, rows: str, bias: torch.Tensor | None) -> None:
        """rows: the kind that the layer sees. bias: (out,), which its output contains."""
        self.adapters: dict[int, LayerAdapter] = {}  # by id
        self._in_force, self._rows, self._bias = in_force, rows, bias

    def __call__(self, x: torch.Tensor | Fp8Rows, y: torch.Tensor) -> None:
        """Adds to y, (…, out), in place, what the adapters make of x, (…, in)."""
        runs = self._in_force.rows.get(self._rows, {})
        applied = [(adapter, runs[key]) for key, adapter in self.adapters.items() if key in runs]
        if not applied:
            return
        if isinstance(x, Fp8Rows):
            x = x.values.to(x.dtype).mul_(x.scales)  # never in float32, where it is wide
        x, y = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        output = None
        if any(adapter.needs_output for adapter, _ in applied):
            output = y.clone() if self._bias is None else y - self._bias
        for adapter, parts in applied:
            for rows, strength in parts:
                adapter.add_to(y[rows], x[rows], None if output is None else output[rows], strength)
