"""Rows of an image that are split over ranks, for layers that look a few rows beyond their own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.parallel.group import Group, LocalGroup


class ImageRows:
    """Which rows of an image of some height a rank has, `own`: equally many each, the last rank fewer, and at least as
    many as anything passed to `around` looks up or down. Without a group one rank has all.

    Images are (images, channels, rows, width) and channels_last. Layers may multiply rows and width, the same on all
    ranks.
    """

    def __init__(self, height: int, group: Group | None = None) -> None:
        self.group = group or LocalGroup()
        self._counts = self.group.shares(height)
        first = sum(self._counts[: self.group.rank])
        self.own = slice(first, first + self._counts[self.group.rank])

    def around(
        self, layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, reach: int, *, scale: int = 1
    ) -> torch.Tensor:
        """Apply a layer that looks at most `reach` rows up and down and makes `scale` rows of each: (images, channels,
        own rows, width) → (images, …, scale · own rows, …), as if it had seen the whole image.

        It runs on the neighbours' nearest rows too, whose results are cut off. Where the image ends the layer sees that
        end, and fills it up as it would there.
        """
        rank, size = self.group.rank, self.group.size
        if size == 1:
            return layer(x)
        above, below = reach * (rank > 0), reach * (rank < size - 1)
        rows = x.permute(2, 0, 3, 1)
        edges = torch.cat([rows[:above], rows[rows.shape[0] - below :]])
        counts = [reach * (abs(other - rank) == 1) for other in range(size)]
        seen = self.group.all_to_all(edges, counts, counts)
        y = layer(torch.cat([seen[:above], rows, seen[above:]]).permute(1, 3, 0, 2))
        return y[:, :, above * scale : y.shape[2] - below * scale]

    def gather(self, rows: torch.Tensor, each: int) -> torch.Tensor:
        """Gather the rows of all ranks, in order: (each · own rows, …) → (each · height, …)."""
        return self.group.gather_rows(rows.contiguous(), [count * each for count in self._counts])
