"""Rows of an image that are split over ranks, for layers that look a few rows beyond their own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.parallel.group import Group, LocalGroup


class ImageRows:
    """Which rows of an image of some height a rank has. Every rank has at least `reach` of them, as far as anything
    passed to `around` looks.

    Images are (images, channels, rows, width) and channels_last. Layers may multiply rows and width, as long as all
    ranks' do.
    """

    def __init__(self, height: int, group: Group) -> None:
        self.group = group
        self.counts = group.shares(height)
        first = sum(self.counts[: group.rank])
        self.own = slice(first, first + self.counts[group.rank])

    @classmethod
    def whole(cls, height: int) -> ImageRows:
        """All of them on one rank."""
        return cls(height, LocalGroup())

    @staticmethod
    def divide(height: int, group: Group, reach: int) -> bool:
        """Whether each rank gets so many rows."""
        return min(group.shares(height)) >= reach

    def around(
        self, layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, reach: int, *, scale: int = 1
    ) -> torch.Tensor:
        """This rank's rows of what `layer` makes of the whole image, `scale` rows of each row of x, where it looks at
        most `reach` rows up and down: computed on the neighbours' nearest rows too, and cut off again.

        Where the image ends the layer sees that end, and fills it up as it would there.
        """
        rank, size = self.group.rank, self.group.size
        if size == 1:
            return layer(x)
        above, below = reach * (rank > 0), reach * (rank < size - 1)
        rows = x.permute(2, 0, 3, 1)
        edges = torch.cat([rows[:above], rows[rows.shape[0] - below :]])
        counts = [reach * (abs(other - rank) == 1) for other in range(size)]
        seen = self.group.all_to_all(edges, counts, counts)
        wide = torch.cat([seen[:above], rows, seen[above:]]).permute(1, 3, 0, 2)
        y = layer(wide)
        return y[:, :, above * scale : y.shape[2] - below * scale]

    def gather(self, rows: torch.Tensor, each: int) -> torch.Tensor:
        """Those of all ranks, in order, where a row of the image is `each` of x's: (rows, …)."""
        return self.group.gather_rows(rows.contiguous(), [count * each for count in self.counts])
