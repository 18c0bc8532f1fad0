"""Sequence parallelism after DeepSpeed-Ulysses (Jacobs et al. 2023): every rank has some of a step's tokens, and for
attention, which alone looks beyond a token, some of the heads of all tokens instead.

Two exchanges a block: q, k and v on the way in, what attention made of them on the way out. A rank sends
(size - 1) / size of its rows, which is 1 / size of the step's: the more ranks, the less each sends. The gate stays
where its tokens are.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from engine.kernels.attention import GatedAttentionKernel
from engine.kernels.fp8 import Fp8Rows
from engine.kernels.gate import sigmoid_mul
from engine.kernels.packing import Packing
from engine.parallel.group import Group
from engine.parallel.linear import ScatteredRows


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

    def gather(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor | Fp8Rows | ScatteredRows:
        """The rows of `whole`, of which x has these, or what a layer gathers and multiplies in one."""
        if isinstance(x, Fp8Rows):  # as bytes: not every library gathers fp8, nor two dtypes in one operation
            as_bytes = x.values.view(torch.uint8), x.scales.view(torch.uint8)
            values, scales = self.group.gather_rows_of_each(as_bytes, self.rows_of_ranks)
            return Fp8Rows(values.view(x.values.dtype), scales.view(x.scales.dtype), x.dtype)
        rows = ScatteredRows(x, self.group, self.rows_of_ranks)
        return rows if self.group.fuses else rows.gather()


def gather(x: torch.Tensor | Fp8Rows, packing: Packing) -> torch.Tensor | Fp8Rows | ScatteredRows:
    """What to multiply, of which x are the packing's rows."""
    return packing.gather(x) if isinstance(packing, Share) else x


class SequenceParallelAttention:
    """`GatedAttentionKernel`, whose backend it uses, for packings that are a rank's share too."""

    def __init__(self, kernel: GatedAttentionKernel) -> None:
        self._kernel = kernel

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        gate: torch.Tensor,
        packing: Packing,
        *,
        fp8: bool = False,
    ) -> torch.Tensor | Fp8Rows:
        """As `GatedAttentionKernel`. The size of a share's group divides heads and kv_heads."""
        if not isinstance(packing, Share) or packing.group.size == 1:
            return self._kernel(query, key, value, gate, packing, fp8=fp8)
        rows, _, head_dim = query.shape
        group, ranks = packing.group, packing.group.size
        mine = [rows] * ranks
        # consecutive heads go to the same rank, so query heads stay with the key/value head that they share
        parts = [heads.flatten(1).unflatten(1, (ranks, -1)).transpose(0, 1) for heads in (query, key, value)]
        sent = torch.cat(parts, dim=2).flatten(0, 1)
        received = group.all_to_all(sent, mine, packing.rows_of_ranks)
        columns = received.split([part.shape[2] for part in parts], dim=1)
        query, key, value = (part.unflatten(1, (-1, head_dim)) for part in columns)
        attended = self._kernel.attend(query, key, value, packing.whole)
        of_heads = group.all_to_all(attended, packing.rows_of_ranks, mine)
        return sigmoid_mul(of_heads.unflatten(0, (ranks, rows)).transpose(0, 1).flatten(1), gate, fp8=fp8)
