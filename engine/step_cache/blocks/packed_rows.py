"""A rank's rows of a batch of which some segments go on while others are set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from engine.parallel.row_share import RowShare


class PackedRows:
    """Rows of the segments that are packed at present: `members`, by their index in the whole batch.

    x: (own rows, width), of a batch that `share` divides. Of some segments there is a copy of how they were earlier.
    """

    def __init__(self, members: Sequence[int], share: RowShare, x: torch.Tensor) -> None:
        self.members, self.share, self.x = tuple(members), share, x
        self._earlier: dict[int, torch.Tensor] = {}  # own rows of packed segments
        self._aside: dict[int, torch.Tensor] = {}  # all rows of the others, on every rank

    def of(self, segment: int) -> torch.Tensor:
        """View a packed segment's own rows."""
        place, bounds = self.members.index(segment), self.share.own.bounds
        return self.x[bounds[place] : bounds[place + 1]]

    def places(self, segment: int) -> slice:
        """Say which of all rows of a packed segment are the own ones."""
        return self.share.own_of(self.members.index(segment))

    def copy(self, segment: int) -> None:
        """Copy how a packed segment is now."""
        self._earlier[segment] = self.of(segment).clone()

    def has_copy(self, segment: int) -> bool:
        """Whether there is a copy of how a segment was."""
        return segment in self._earlier

    def take_change(self, segment: int) -> torch.Tensor:
        """Give what has been added to a segment's own rows since it was copied, in place of the copy."""
        earlier = self._earlier.pop(segment)
        return torch.sub(self.of(segment), earlier, out=earlier)

    def gather(self, rows: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Gather all rows of packed segments, each in memory of its own, given the own ones of each."""
        if not rows or self.share.ranks == 1:
            return dict(rows)
        return {segment: part.clone() for segment, part in self._views(rows).items()}

    def pack(self, members: Sequence[int], share: RowShare) -> None:
        """Pack these segments instead, as `share` divides them, and set the others aside."""
        earlier = self._views(self._earlier)
        self._aside.update(self._views({segment: self.of(segment) for segment in self.members}))
        self.members, self.share = tuple(members), share
        self.x = torch.cat([self._aside.pop(segment)[self.places(segment)] for segment in members])
        self._earlier = {segment: rows[self.places(segment)] for segment, rows in earlier.items()}

    def _views(self, rows: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Gather all rows of packed segments, which may be parts of one tensor."""
        if not rows or self.share.ranks == 1:
            return dict(rows)
        segments = [self.members.index(segment) for segment in sorted(rows)]
        gathered = self.share.gather_segments(torch.cat([rows[segment] for segment in sorted(rows)]), segments)
        parts = gathered.split([self.share.whole.lengths[place] for place in segments])
        return dict(zip(sorted(rows), parts, strict=True))
