"""The pieces that the text encoder, text fusion and the diffusion transformer share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from engine.kernels.attention.backends import GatedAttentionKernel
from engine.kernels.fp8 import Fp8Rows
from engine.kernels.gate import sigmoid_mul, silu_mul
from engine.kernels.norm import rms_norm
from engine.kernels.rope import norm_rotate_, norm_rotate_to_ranks
from engine.parallel.group import Group
from engine.parallel.linear import ColumnParallelLinear, RowParallelLinear
from engine.parallel.row_share import RowShare

# Gives a parameter as LoRAs make it in the current forward, with a dimension for the batch's segments in front where
# these differ; None where no LoRA changes it.
SideVector = Callable[[], torch.Tensor | None]


class Visit(Protocol):
    """Gives blocks one after the other; offloading replaces it to bring each to the device before its turn."""

    def __call__(self, blocks: Sequence[Any], part: range | None = None, ahead: int | None = None) -> Iterable[Any]:
        """Give all blocks, or those of `part`: a pass may be several parts and leave blocks out. ahead: before which
        block it is not open what else the pass needs, which is all from `part` to there; by default all."""


def visit_in_place(blocks: Sequence[Any], part: range | None = None, ahead: int | None = None) -> Iterable[Any]:
    """Give blocks that stay where they are."""
    return blocks if part is None else [blocks[index] for index in part]


class RMSNorm(nn.Module):
    """RMSNorm with a float32 weight, (width,). Krea's zero-centred weights got their 1 added when they were loaded."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.side_vector: SideVector | None = None

    @property
    def weight_in_force(self) -> torch.Tensor:
        """The weight with what LoRAs change of it in the current forward: (width,), or (segments, width) where they
        differ among the segments of a batch, which they do not before the transformer's blocks."""
        changed = None if self.side_vector is None else self.side_vector()
        return self.weight if changed is None else changed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Norm each row: (…, width) → the same shape and dtype."""
        return rms_norm(x, self.weight_in_force, self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), gate and up being one matrix; the width in between is split over the group."""

    def __init__(self, width: int, intermediate_size: int, group: Group) -> None:
        super().__init__()
        self.gate_up = ColumnParallelLinear(width, (intermediate_size, intermediate_size), group)
        self.down = RowParallelLinear(intermediate_size, width, group)

    def forward(self, x: torch.Tensor | Fp8Rows, share: RowShare | None = None) -> torch.Tensor:
        """Map (rows, width) → (rows, width), or with `share` (multiplied rows, width) → (own rows, width)."""
        return self.down(silu_mul(self.gate_up(x), fp8=self.down.takes_fp8), share)


class GatedAttention(nn.Module):
    """Krea's attention: q, k, v and an output gate from one matrix, normed q and k, optional RoPE, heads split."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        group: Group,
        attention: GatedAttentionKernel,
    ) -> None:
        super().__init__()
        whole = [heads * head_dim for heads in (num_heads, num_kv_heads, num_kv_heads, num_heads)]
        self.qkvg = ColumnParallelLinear(width, whole, group)
        self.norm_q = RMSNorm(head_dim, eps)
        self.norm_k = RMSNorm(head_dim, eps)
        self.out = RowParallelLinear(num_heads * head_dim, width, group)
        self._attention = attention
        self._head_dim = head_dim
        self._columns = [part // group.size for part in whole]

    def forward(self, x: torch.Tensor | Fp8Rows, share: RowShare, rotations: torch.Tensor | None) -> torch.Tensor:
        """Let each row attend to its segment: (multiplied rows, width) → (own rows, width). rotations: of the rows
        of x, (multiplied rows, head_dim / 2) complex64; None for no RoPE."""
        if share.sequence.size > 1:
            return self.out(self._attend_with_ranks(x, share, rotations), share)
        qkv, gate = self.qkvg(x).split((sum(self._columns[:3]), self._columns[3]), dim=-1)
        query, key, value = self._heads(qkv)
        norms = self.norm_q.weight_in_force, self.norm_k.weight_in_force
        norm_rotate_(query, key, *norms, self.norm_q.eps, rotations, packing=share.multiplied)
        return self.out(self._attention(query, key, value, gate, share.whole, fp8=self.out.takes_fp8), share)

    def _attend_with_ranks(
        self, x: torch.Tensor | Fp8Rows, share: RowShare, rotations: torch.Tensor | None
    ) -> torch.Tensor | Fp8Rows:
        """Attend where ranks share the rows, each with some heads of all: (multiplied rows, width) → (multiplied rows,
        heads · head_dim), gated. The gate is computed while q, k and v are on their way."""
        norms = self.norm_q.weight_in_force, self.norm_k.weight_in_force
        ranks = share.sequence.size
        qkv, multiply_gate = self.qkvg.in_two(x, sum(self._columns[:3]))
        heads = self._heads(qkv)
        sent = norm_rotate_to_ranks(*heads, *norms, self.norm_q.eps, rotations, ranks, packing=share.multiplied)
        receive = share.begin_rows_for_heads(sent)
        gate = multiply_gate()
        attended = self._attention.attend(*self._heads(receive(), ranks), share.whole)
        return sigmoid_mul(share.heads_for_rows(attended).transpose(0, 1), gate, fp8=self.out.takes_fp8)

    def _heads(self, qkv: torch.Tensor, ranks: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Split (rows, q | k | v), of which each of `ranks` ranks has some heads, into (rows, heads, head_dim) each."""
        columns = [part // ranks for part in self._columns[:3]]
        query, key, value = (part.unflatten(-1, (-1, self._head_dim)) for part in qkv.split(columns, dim=-1))
        return query, key, value
