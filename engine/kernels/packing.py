"""Which rows of a packed (tokens, …) matrix belong together, for the host and for kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import torch

TILE_ROWS = 128  # query rows of one program of the Triton attention
LONG_SEGMENT = 1024  # tokens, an image of 512²: from here on attention takes long enough to choose its kernel by


class Packing:
    """Segments that lie one after the other, and may be empty. Tables for kernels are made on `device` when they are
    first asked for.

    bounds: the segments' offsets on the host, (segments + 1): segment i is rows bounds[i] to bounds[i + 1].
    captured: in a CUDA graph: only the tables on the device say where segments lie, there are neither bounds nor
    lengths, and `longest` is what they may be at most.
    """

    captured = False

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = tuple(lengths)
        self.bounds = tuple(accumulate(lengths, initial=0))
        self.tokens, self.segments = self.bounds[-1], len(self.lengths)
        self.longest = max(lengths, default=0)
        self.device = device

    @cached_property
    def offsets(self) -> torch.Tensor:
        """`bounds` for kernels, where others say cu_seqlens: (segments + 1,) int32."""
        return self._to_device(torch.tensor(self.bounds, dtype=torch.int32))

    @cached_property
    def row_segments(self) -> torch.Tensor:
        """The segment of every row: (tokens,) int32."""
        segments = torch.arange(self.segments, dtype=torch.int32)
        return self._to_device(segments.repeat_interleave(torch.tensor(self.lengths)))

    @cached_property
    def tiles(self) -> torch.Tensor:
        """The work of attention, in tiles of `TILE_ROWS` queries, the last of a segment being shorter: (tiles, 3) int32
        of the tile's first row, its segment's first row, and its segment's last row + 1."""
        bounds = pairwise(self.bounds)
        tiles = [(first, start, stop) for start, stop in bounds for first in range(start, stop, TILE_ROWS)]
        return self._to_device(torch.tensor(tiles, dtype=torch.int32).view(-1, 3))

    def _to_device(self, table: torch.Tensor) -> torch.Tensor:
        return table.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else table


class CapturedPacking(Packing):
    """The tables of a packing in memory that stays where it is, to be overwritten with those of any that fits."""

    captured = True

    def __init__(self, tokens: int, segments: int, device: torch.device) -> None:
        super().__init__([tokens] + [0] * (segments - 1), device)
        self.offsets = self.offsets.clone()
        self.row_segments = self.row_segments.clone()
        self.tiles = self.offsets.new_zeros((tokens // TILE_ROWS + segments, 3))  # the most that such segments have
        self.overwrite(Packing(self.lengths, device))
        del self.bounds, self.lengths

    def overwrite(self, packing: Packing) -> None:
        """Take over a packing that has as many tokens and segments. Tiles that it does not need are left empty."""
        tiles = packing.tiles
        self.offsets.copy_(packing.offsets)
        self.row_segments.copy_(packing.row_segments)
        self.tiles[: tiles.shape[0]].copy_(tiles)
        self.tiles[tiles.shape[0] :].zero_()
