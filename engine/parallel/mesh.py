"""A rank's place among all: which ranks share its weights, and which its tokens.

World rank s · tp + t holds part t of the weights and part s of the tokens: the ranks that exchange most, those of
tensor parallelism, are neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.parallel.group import Group, LocalGroup, thread_groups


@dataclass(frozen=True)
class Mesh:
    """The groups of one rank; without arguments those of a rank that is alone.

    tp: whose ranks hold the parts of every matrix; sp: whose ranks hold parts of a step's tokens, and the same weights.
    """

    world: Group = field(default_factory=LocalGroup)
    tp: Group = field(default_factory=LocalGroup)
    sp: Group = field(default_factory=LocalGroup)

    def close(self) -> None:
        """Give up whatever the groups hold. Ranks that are threads and wait for this one get a `RankError`."""
        for group in dict.fromkeys((self.tp, self.sp, self.world)):  # one may be another
            group.close()


def tp_ranks(tp: int, sp: int) -> list[list[int]]:
    """The world ranks of every tensor-parallel group."""
    return [[s * tp + t for t in range(tp)] for s in range(sp)]


def sp_ranks(tp: int, sp: int) -> list[list[int]]:
    """The world ranks of every sequence-parallel group."""
    return [[s * tp + t for s in range(sp)] for t in range(tp)]


def thread_meshes(tp: int, sp: int, timeout_s: float = 60.0) -> list[Mesh]:
    """The meshes of tp · sp ranks that are threads. A rank that waits longer than `timeout_s` raises `RankError`."""

    def groups(all_ranks: Sequence[Sequence[int]]) -> dict[int, Group]:
        return {
            rank: group
            for ranks in all_ranks
            for rank, group in zip(ranks, thread_groups(len(ranks), timeout_s), strict=True)
        }

    world, of_tp, of_sp = groups([range(tp * sp)]), groups(tp_ranks(tp, sp)), groups(sp_ranks(tp, sp))
    return [Mesh(world[rank], of_tp[rank], of_sp[rank]) for rank in range(tp * sp)]
