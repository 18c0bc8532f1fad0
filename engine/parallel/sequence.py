"""Sequence parallelism after DeepSpeed-Ulysses (Jacobs et al. 2023): every rank has some of a step's tokens, and for
attention, which alone looks beyond a token, some of the heads of all tokens instead.

Two exchanges a block: q, k and v on the way in, what attention made of them on the way out. A rank sends
(size - 1) / size of its rows, which is 1 / size of the step's: the more ranks, the less each sends. The gate stays
where its tokens are, and is computed while q, k and v are on their way.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from engine.kernels.fp8 import Fp8Rows
from engine.kernels.packing import Packing
from engine.parallel.group import Group


class Share(Packing):
    """The rows of a packing that one of a group's ranks has, equally many, the last ones fewer. Of a segment that lies
    elsewhere it has none. The packing may be a share itself.

    whole: that packing. rows: where these lie in it. rows_of_ranks: how many each rank has.
    """

    def __init__(self, whole: Packing, group: Group) -> None:
        self.group = group
        self.rows_of_ranks = group.shares(whole.tokens)
        first = sum(self.rows_of_ranks[: group.rank])
        last = first + self.rows_of_ranks[group.rank]
        self.rows = slice(first, last)
        self._whole = whole
        super().__init__(
            [max(0, min(stop, last) - max(start, first)) for start, stop in pairwise(whole.bounds)], whole.device
        )

    @property
    def whole(self) -> Packing:
        return self._whole

    def gather(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor | Fp8Rows:
        """The rows of `whole`, of which x has these."""
        if isinstance(x, Fp8Rows):  # as bytes: not every library gathers fp8, nor two dtypes in one operation
            scales = x.scales.flatten().view(torch.uint8).view(-1, x.scales.itemsize)
            as_bytes = x.values.view(torch.uint8), scales
            values, scales = self.group.gather_rows_of_each(as_bytes, self.rows_of_ranks)
            return Fp8Rows(values.view(x.values.dtype), scales.view(x.scales.dtype), x.dtype)
        return self.group.gather_rows(x, self.rows_of_ranks)

    def begin_rows_for_heads(self, parts: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Some heads of all rows for all heads of these: (ranks, own rows, width), part i being for rank i → (rows of
        `whole`, width), when what this returns is called."""
        mine = [parts.shape[1]] * self.group.size
        return self.group.begin_all_to_all(parts.flatten(0, 1), mine, self.rows_of_ranks)

    def heads_for_rows(self, x: torch.Tensor) -> torch.Tensor:
        """The way back: (rows of `whole`, width) → (ranks, own rows, width), part i being from rank i."""
        ranks = self.group.size
        mine = [self.tokens] * ranks
        return self.group.all_to_all(x, self.rows_of_ranks, mine).unflatten(0, (ranks, self.tokens))


def gather(x: torch.Tensor | Fp8Rows, packing: Packing) -> torch.Tensor | Fp8Rows:
    """What to multiply, of which x are the packing's rows."""
    return packing.gather(x) if isinstance(packing, Share) else x
