"""Adapters beside a layer: what they add to its output, computed from its input, its weight staying as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.kernels.fp8 import Fp8Rows
from engine.lora.deltas import Delta, TensorHolder

# Adapters by id, each with the runs of rows that it is in force in and its strength there.
Runs = Mapping[int, Sequence[tuple[slice, float]]]


@dataclass
class Piece(TensorHolder):
    """What one adapter does to one of the matrices that are stacked in a layer.

    rows: the matrix's rows in the rank's parameter, which are columns of the output. gain: a factor or a row's factors
    on the layer's own output, (rows,); bias: (rows,).
    """

    rows: slice
    delta: Delta | None
    gain: torch.Tensor | float | None = None
    bias: torch.Tensor | None = None


class LayerAdapter:
    """What one adapter does to one layer. The low-rank pieces' A are stacked, so that x is read once for all."""

    def __init__(self, pieces: Sequence[Piece], dtype: torch.dtype) -> None:
        """pieces: in float32, to be held in `dtype`."""
        self._pieces = pieces
        self.needs_output = any(piece.gain is not None for piece in pieces)
        self._held = [held for piece in pieces for held in (piece, piece.delta) if held is not None]
        for held in self._held:
            held.to(dtype)
        low_rank = [piece.delta for piece in pieces if piece.delta is not None and piece.delta.down is not None]
        downs = [delta.down for delta in low_rank if delta.down is not None]
        self._ranks = [down.shape[0] for down in downs]
        self._down = torch.cat(downs) if downs else None
        if self._down is not None:
            for delta, part in zip(low_rank, self._down.split(self._ranks), strict=True):
                delta.down = part  # of the stack, whose numbers it would otherwise hold twice

    @property
    def bytes(self) -> int:
        """What it holds."""
        return sum(tensor.nbytes for held in self._held for tensor in held.tensors().values())

    def add_to(self, y: torch.Tensor, x: torch.Tensor, output: torch.Tensor | None, strength: float) -> None:
        """y += strength · change, in place. output: x Wᵀ without a bias, if it is needed."""
        hidden = iter(() if self._down is None else (x @ self._down.t()).split(self._ranks, dim=1))
        for piece in self._pieces:
            part = y[:, piece.rows]
            if piece.gain is not None:
                assert output is not None
                part.add_(output[:, piece.rows] * piece.gain, alpha=strength)
            if piece.delta is not None:
                piece.delta.add_to(part, x if piece.delta.down is None else next(hidden), strength)
            if piece.bias is not None:
                part.add_(piece.bias, alpha=strength)


class SidePath:
    """All loaded adapters of one layer; called with the layer's input and output, to which it adds."""

    def __init__(self, in_force: Mapping[str, Runs], rows: str, bias: torch.Tensor | None) -> None:
        """in_force: which adapters the forward that runs now applies, by the kind of rows. rows: the layer's kind.
        bias: what its output contains."""
        self.adapters: dict[int, LayerAdapter] = {}
        self._in_force, self._rows, self._bias = in_force, rows, bias

    def __call__(self, x: torch.Tensor | Fp8Rows, y: torch.Tensor) -> None:
        runs = self._in_force.get(self._rows, {})
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
