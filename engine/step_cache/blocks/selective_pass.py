"""Takes a packed batch through the blocks once, each of its segments through those that it needs.

After its first blocks a half of an image compares what they added with what they added in the last step in which it ran
all blocks. Where the two are close, what the blocks that follow added then, or a forecast from the last few such steps,
is added again, and only the last blocks still run. Every half decides for itself: those that go on are packed into a
narrower batch, and all are together again for the last blocks. Where all decide alike nothing is packed or copied.

Ranks that share rows add up what each found in its own, in the same order, so that they decide alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from engine.model.batch import Layout
from engine.model.transformer import BlockRows, TimeModulation, Transformer
from engine.step_cache.blocks.packed_rows import PackedRows
from engine.step_cache.blocks.watched_half import WatchedHalf

# Lays out a narrower batch of these segments, by index, whose adapters are in force meanwhile.
Narrow = Callable[[Sequence[int]], AbstractContextManager[Layout]]


class SelectivePass:
    """One pass of a batch through the transformer."""

    def __init__(
        self, transformer: Transformer, layout: Layout, halves: Sequence[WatchedHalf | None], narrow: Narrow
    ) -> None:
        """halves: of each segment, None for one that runs all blocks and keeps nothing."""
        self._transformer, self._layout, self._narrow = transformer, layout, narrow
        self._blocks, self._all = len(transformer.transformer_blocks), tuple(range(len(halves)))
        self._halves = {segment: half for segment, half in enumerate(halves) if half is not None}
        self._open = {segment for segment, half in self._halves.items() if half.is_open}
        self._skipping: set[int] = set()
        self._ready: BlockRows | None = None  # for the next block, unless the packed rows have changed since

    def denoise(self, x: torch.Tensor, modulation: TimeModulation, *_: object) -> torch.Tensor:
        """Stand in for `Transformer.denoise`. Waits for the device once for each number of first blocks that open
        halves have, so not at all without any."""
        self._packed, self._modulation = PackedRows(self._all, self._layout.share, x), modulation
        for segment in self._halves:
            self._packed.copy(segment)
        begin = 0
        for stop in sorted({*map(self._first, self._halves), *map(self._end, self._halves), self._blocks}):
            self._run(range(begin, stop))
            self._compare([segment for segment in self._halves if self._first(segment) == stop])
            self._rejoin([segment for segment in self._halves if self._end(segment) == stop])
            begin = stop
        self._run(range(begin, begin))
        assert self._ready is not None
        return self._transformer.finish(self._ready)

    def _first(self, segment: int) -> int:
        return self._halves[segment].cache.first_blocks

    def _end(self, segment: int) -> int:
        return self._blocks - self._halves[segment].cache.last_blocks

    def _run(self, part: range) -> None:
        """Run blocks on the segments that need them, if there are any."""
        running = tuple(segment for segment in self._all if segment not in self._skipping)
        if not running:
            return
        whole = running == self._all
        ahead = min(map(self._first, self._open), default=self._blocks)
        with nullcontext(self._layout) if whole else self._narrow(running) as layout:
            if running != self._packed.members:
                self._ready = None  # before as many rows again are made
                self._packed.pack(running, layout.share)
            if self._ready is None:
                modulation = self._modulation if whole else self._modulation.of(running)
                around = modulation, layout.share, layout.rotations
                self._ready = self._transformer.enter(part.start, self._packed.x, *around)
            self._transformer.run_blocks(self._ready, part, ahead)

    def _compare(self, segments: Sequence[int]) -> None:
        """Decide the open ones of segments that have run their first blocks, and keep what these have added to those
        that go on."""
        changes = {segment: self._packed.take_change(segment) for segment in segments}
        for segment in self._decide({segment: changes[segment] for segment in segments if segment in self._open}):
            half = self._halves[segment]
            self._packed.of(segment).add_(half.residual(self._packed.places(segment)))
            half.note_saved()
            del changes[segment]
            self._skipping.add(segment)
            self._ready = None
        self._open.difference_update(segments)
        kept = {segment: change for segment, change in changes.items() if self._halves[segment].keeps}
        for segment, first in self._packed.gather(kept).items():
            self._halves[segment].note_computed(first)
            self._packed.copy(segment)

    def _decide(self, changes: dict[int, torch.Tensor]) -> list[int]:
        """Say which of these segments are saved, given what the first blocks have added to the own rows of each."""
        if not changes:
            return []
        sums = []
        for segment, change in changes.items():
            before = self._halves[segment].first[self._packed.places(segment)]
            sums += [_sum_of_sizes(change - before), _sum_of_sizes(before)]
        of_ranks = self._packed.share.gather_of_each(torch.stack(sums)).tolist()  # here the host waits
        totals = [sum(parts) for parts in zip(*of_ranks, strict=True)]
        return [
            segment
            for segment, changed, before in zip(changes, totals[::2], totals[1::2], strict=True)
            if self._halves[segment].is_saved(changed, before)
        ]

    def _rejoin(self, segments: Sequence[int]) -> None:
        """Let segments run their last blocks, and keep what those before have added to those that ran them."""
        changes = {segment: self._packed.take_change(segment) for segment in segments if self._packed.has_copy(segment)}
        for segment, between in self._packed.gather(changes).items():
            self._halves[segment].note_between(between)
        self._skipping.difference_update(segments)


def _sum_of_sizes(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, 1, dtype=torch.float32)
