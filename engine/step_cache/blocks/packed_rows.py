"""A rank's rows of a batch of which some segments rest while others go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from engine.parallel.row_share import RowShare


class PackedRows:
    """Rows of the segments that are packed at present: `members`, by their index in the whole batch.

    x: (own rows, width), of a batch that `share` divides. Of a marked segment it is known how it was then.
    """

    def __init__(self, members: Sequence[int], share: RowShare, x: torch.Tensor) -> None:
        self.members, self.share, self.x = tuple(members), share, x
        self._marks: dict[int, torch.Tensor] = {}  # own rows
        self._resting: dict[int, torch.Tensor] = {}  # all rows, on every rank

    def of(self, segment: int) -> torch.Tensor:
        """View a packed segment's own rows."""
        place, bounds = self.members.index(segment), self.share.own.bounds
        return self.x[bounds[place] : bounds[place + 1]]

    def places(self, segment: int) -> slice:
        """Say which of all rows of a packed segment are the own ones."""
        return self.share.own_of(self.members.index(segment))

    def mark(self, segment: int) -> None:
        """Remember how a packed segment is now."""
        self._marks[segment] = self.of(segment).clone()

    def is_marked(self, segment: int) -> bool:
        """Whether it is known how a segment was."""
        return segment in self._marks

    def take_change(self, segment: int) -> torch.Tensor:
        """Give what has been added to a marked segment's own rows since then, and forget the mark."""
        mark = self._marks.pop(segment)
        return torch.sub(self.of(segment), mark, out=mark)

    def gather(self, rows: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Gather all rows of packed segments, each in memory of its own, given the own ones of each."""
        if not rows or self.share.ranks == 1:
            return dict(rows)
        return {segment: part.clone() for segment, part in self._views(rows).items()}

    def pack(self, members: Sequence[int], share: RowShare) -> None:
        """Pack these segments instead, as `share` divides them; others rest."""
        marks = self._views(self._marks)
        self._resting.update(self._views({segment: self.of(segment) for segment in self.members}))
        self.members, self.share = tuple(members), share
        self.x = torch.cat([self._resting.pop(segment)[self.places(segment)] for segment in members])
        self._marks = {segment: mark[self.places(segment)] for segment, mark in marks.items()}

    def _views(self, rows: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Gather all rows of packed segments, which may be parts of one tensor."""
        if not rows or self.share.ranks == 1:
            return dict(rows)
        segments = [self.members.index(segment) for segment in sorted(rows)]
        gathered = self.share.gather_segments(torch.cat([rows[segment] for segment in sorted(rows)]), segments)
        parts = gathered.split([self.share.whole.lengths[place] for place in segments])
        return dict(zip(sorted(rows), parts, strict=True))
