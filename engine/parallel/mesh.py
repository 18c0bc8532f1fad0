"""A rank's place among all: with which ranks it shares weights, tokens and segments.

World rank (c · sp + s) · tp + t holds part t of the weights and part s of the tokens of the segments that half c steps:
the ranks that exchange most, those of tensor parallelism, are neighbours, and the halves, which exchange least, are
furthest apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.parallel.group import Group, LocalGroup, thread_groups


@dataclass(frozen=True)
class Mesh:
    """The groups of one rank; without arguments those of a rank that is alone.

    tp: whose ranks hold the parts of every matrix; sp: whose ranks hold parts of the same tokens, and the same weights;
    cfg: whose ranks step different segments, as the two of a guided image are; wide: of sp and cfg together, for steps
    whose segments do not divide into halves.
    """

    world: Group = field(default_factory=LocalGroup)
    tp: Group = field(default_factory=LocalGroup)
    sp: Group = field(default_factory=LocalGroup)
    cfg: Group = field(default_factory=LocalGroup)
    wide: Group = field(default_factory=LocalGroup)

    @classmethod
    def build(cls, rank: int, degrees: Degrees, group_of: Callable[[tuple[int, ...]], Group]) -> Mesh:
        """This rank's groups of those that `group_of` makes, which is called with the same world ranks in the same
        order on every rank, once for each group of more than one."""
        made: dict[tuple[int, ...], Group] = {}
        own: dict[str, Group] = {}
        for name, all_ranks in degrees.groups().items():
            for ranks in map(tuple, all_ranks):
                if len(ranks) > 1 and ranks not in made:
                    made[ranks] = group_of(ranks)
                if rank in ranks:
                    own[name] = made.get(ranks) or LocalGroup()
        return cls(**own)

    def close(self) -> None:
        """Give up whatever the groups hold. Ranks that are threads and wait for this one get a `RankError`."""
        for group in dict.fromkeys((self.tp, self.sp, self.cfg, self.wide, self.world)):  # one may be another
            group.close()


@dataclass(frozen=True)
class Degrees:
    """How many ranks share weights, tokens and segments."""

    tp: int = 1
    sp: int = 1
    cfg: int = 1

    @property
    def ranks(self) -> int:
        return self.tp * self.sp * self.cfg

    def groups(self) -> dict[str, list[list[int]]]:
        """The world ranks of every group, by the names of `Mesh`."""
        grid = torch.arange(self.ranks).view(self.cfg, self.sp, self.tp)
        rows: dict[str, Any] = {
            "world": grid.view(1, -1),
            "tp": grid.flatten(0, 1),
            "sp": grid.transpose(1, 2).flatten(0, 1),
            "cfg": grid.permute(1, 2, 0).flatten(0, 1),
            "wide": grid.flatten(0, 1).t(),
        }
        return {name: table.tolist() for name, table in rows.items()}


def thread_meshes(degrees: Degrees, timeout_s: float = 60.0) -> list[Mesh]:
    """The meshes of ranks that are threads. A rank that waits longer than `timeout_s` raises `RankError`."""
    made: dict[tuple[int, ...], Sequence[Group]] = {}

    def mesh(rank: int) -> Mesh:
        def group_of(ranks: tuple[int, ...]) -> Group:
            groups = made.setdefault(ranks, thread_groups(len(ranks), timeout_s))
            return groups[ranks.index(rank)] if rank in ranks else LocalGroup()

        return Mesh.build(rank, degrees, group_of)

    return [mesh(rank) for rank in range(degrees.ranks)]
