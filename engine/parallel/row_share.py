"""Which rows a rank has, of a packed batch or of an image, and how it gets the others.

Between ranks that share tokens (`--sp`) this is sequence parallelism after DeepSpeed-Ulysses (Jacobs et al. 2023): for
attention, which alone looks beyond a token, each rank has some heads of all tokens instead. Two exchanges a block: q, k
and v on the way in, what attention made of them on the way out. A rank sends (size - 1) / size of its rows, which are
1 / size of the step's: the more ranks, the less each sends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch

from engine.kernels.fp8 import Fp8Rows
from engine.kernels.packing import Packing
from engine.parallel.group import Group, LocalGroup


class RowShare:
    """Which rows of a packed batch a rank has.

    whole: the packing of all rows. multiplied: of the rows that this rank multiplies with matrices; the ranks of
    `sequence` have a part of `whole` each. own: of the rows that it norms and keeps between matrices; the ranks of
    `tensor`, which hold parts of the same matrices, have a part of `multiplied` each.

    Parts are equally long, the last ones shorter or empty, and may cut segments. A rank that is alone has all rows: it
    sends and copies nothing, and does not ask for the bounds of `whole`, which a captured packing lacks.
    """

    def __init__(self, whole: Packing, sequence: Group | None = None, tensor: Group | None = None) -> None:
        self.whole = whole
        self.sequence, self.tensor = sequence or LocalGroup(), tensor or LocalGroup()
        self._multiplied_counts = self.sequence.shares(whole.tokens)  # of every rank
        self.multiplied, self._multiplied_rows = _part(whole, self.sequence, self._multiplied_counts)
        self._own_counts = self.tensor.shares(self.multiplied.tokens)
        self.own, self._own_rows = _part(self.multiplied, self.tensor, self._own_counts)

    def take_multiplied(self, x: torch.Tensor) -> torch.Tensor:
        """View the rows that this rank multiplies: (rows, …) → (multiplied rows, …)."""
        return x[self._multiplied_rows]

    def take_own(self, x: torch.Tensor) -> torch.Tensor:
        """View the rank's own rows: (rows, …) → (own rows, …)."""
        return x[self._multiplied_rows][self._own_rows]

    def gather(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor | Fp8Rows:
        """Gather what is to be multiplied: (own rows, width) → (multiplied rows, width)."""
        if self.tensor.size == 1:
            return x
        if isinstance(x, Fp8Rows):  # as bytes: not every library gathers fp8, nor two dtypes in one operation
            scales = x.scales.flatten().view(torch.uint8).view(-1, x.scales.itemsize)
            as_bytes = x.values.view(torch.uint8), scales
            values, scales = self.tensor.gather_rows_of_each(as_bytes, self._own_counts)
            return Fp8Rows(values.view(x.values.dtype), scales.view(x.scales.dtype), x.dtype)
        return self.tensor.gather_rows(x, self._own_counts)

    def gather_whole(self, x: torch.Tensor) -> torch.Tensor:
        """Gather all rows: (own rows, width) → (rows, width)."""
        multiplied = self.tensor.gather_rows(x, self._own_counts)
        return self.sequence.gather_rows(multiplied, self._multiplied_counts)

    @property
    def ranks(self) -> int:
        """How many ranks share the rows."""
        return self.sequence.size * self.tensor.size

    def own_of(self, segment: int) -> slice:
        """Say which of a segment's rows are own ones."""
        first = sum(self._multiplied_counts[: self.sequence.rank]) + sum(self._own_counts[: self.tensor.rank])
        start, stop = self.whole.bounds[segment : segment + 2]
        return slice(max(0, first - start), max(0, min(first + self.own.tokens, stop) - start))

    def gather_segments(self, x: torch.Tensor, segments: Sequence[int]) -> torch.Tensor:
        """Gather all rows of some segments, in their order: (own rows of these, …) → (their rows, …)."""
        bounds = [self.whole.bounds[segment : segment + 2] for segment in segments]

        def count(first: int, rows: int) -> int:
            return sum(max(0, min(stop, first + rows) - max(start, first)) for start, stop in bounds)

        firsts = list(accumulate(self._multiplied_counts, initial=0))
        multiplied = [count(*part) for part in zip(firsts, self._multiplied_counts, strict=False)]
        owns = accumulate(self._own_counts, initial=firsts[self.sequence.rank])
        own = [count(*part) for part in zip(owns, self._own_counts, strict=False)]
        return self.sequence.gather_rows(self.tensor.gather_rows(x, own), multiplied)

    def gather_of_each(self, x: torch.Tensor) -> torch.Tensor:
        """Gather a tensor of every rank that shares the rows, in the same order on all: (…) → (ranks, …)."""
        return self.sequence.all_gather(self.tensor.all_gather(x[None]))

    @property
    def filled_rows(self) -> int:
        """How many rows `reduce_scatter` takes: the multiplied ones, and a few that fill up the last parts."""
        return self._own_counts[0] * self.tensor.size

    def reduce_scatter(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks of `tensor`: (`filled_rows`, width) → (own rows, width). What lies in rows that fill up is
        read and never given back."""
        return self.tensor.reduce_scatter(x)[: self.own.tokens]

    def begin_rows_for_heads(self, parts: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to exchange all heads of these rows for some heads of all rows: (ranks, multiplied rows, width), part i
        being for rank i. Returns a function that gives (rows, width) when they have come."""
        mine = [self.multiplied.tokens] * self.sequence.size
        return self.sequence.begin_all_to_all(parts.flatten(0, 1), mine, self._multiplied_counts)

    def heads_for_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Exchange them back: (rows, width) → (ranks, multiplied rows, width), part i being from rank i."""
        ranks, rows = self.sequence.size, self.multiplied.tokens
        return self.sequence.all_to_all(x, self._multiplied_counts, [rows] * ranks).unflatten(0, (ranks, rows))


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


def _part(whole: Packing, group: Group, counts: Sequence[int]) -> tuple[Packing, slice]:
    """The part of a packing that this rank of a group has, and its rows in it."""
    if group.size == 1:
        return whole, slice(None)
    first = sum(counts[: group.rank])
    last = first + counts[group.rank]
    lengths = [max(0, min(stop, last) - max(start, first)) for start, stop in pairwise(whole.bounds)]
    return Packing(lengths, whole.device), slice(first, last)
