"""Sequence parallelism after DeepSpeed-Ulysses (Jacobs et al. 2023): every rank has some of a step's tokens, and for
attention, which alone looks beyond a token, some of the heads of all tokens instead.

Two exchanges a block: q, k and v on the way in, what attention made of them on the way out. A rank sends
(size - 1) / size of its rows, which is 1 / size of the step's: the more ranks, the less each sends. The gate stays
where its tokens are.
"""

from __future__ import annotations

import torch

from engine.kernels.attention import GatedAttentionKernel
from engine.kernels.fp8 import Fp8Rows
from engine.kernels.gate import sigmoid_mul
from engine.kernels.packing import Packing, Share
from engine.parallel.group import Group


class SequenceParallelAttention:
    """`GatedAttentionKernel` for rows that are a rank's share of the packed matrix. Uses the backend of `kernel`."""

    def __init__(self, kernel: GatedAttentionKernel, group: Group) -> None:
        self._kernel, self._group = kernel, group

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
        """As `GatedAttentionKernel`, with a `Share` of a packing; the group's size divides heads and kv_heads."""
        assert isinstance(packing, Share)
        rows, _, head_dim = query.shape
        ranks = self._group.size
        mine = [rows] * ranks
        # consecutive heads go to the same rank, so query heads stay with the key/value head that they share
        parts = [heads.flatten(1).unflatten(1, (ranks, -1)).transpose(0, 1) for heads in (query, key, value)]
        sent = torch.cat(parts, dim=2).flatten(0, 1)
        received = self._group.all_to_all(sent, mine, packing.rows_of_ranks)
        columns = received.split([part.shape[2] for part in parts], dim=1)
        query, key, value = (part.unflatten(1, (-1, head_dim)) for part in columns)
        attended = self._kernel.attend(query, key, value, packing.whole)
        of_heads = self._group.all_to_all(attended, packing.rows_of_ranks, mine)
        return sigmoid_mul(of_heads.unflatten(0, (ranks, rows)).transpose(0, 1).flatten(1), gate, fp8=fp8)
