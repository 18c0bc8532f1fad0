"""The groups of a rank: with which ranks it shares weights, tokens and segments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.config.degrees import Degrees
from engine.parallel.group import Group, LocalGroup


@dataclass(frozen=True)
class Mesh:
    """The groups of one rank; without arguments those of a rank that is alone.

    world: all ranks. tp: whose ranks hold the parts of every matrix. sp: whose ranks hold parts of the same tokens, and
    the same weights. cfg: whose ranks step different segments, as the two of a guided image are. wide: of sp and cfg
    together, for steps whose segments do not divide evenly over cfg. sharing: the largest number of ranks on one GPU;
    None without GPUs, or where they have not been counted.
    """

    world: Group = field(default_factory=LocalGroup)
    tp: Group = field(default_factory=LocalGroup)
    sp: Group = field(default_factory=LocalGroup)
    cfg: Group = field(default_factory=LocalGroup)
    wide: Group = field(default_factory=LocalGroup)
    sharing: int | None = None

    @classmethod
    def build(cls, rank: int, degrees: Degrees, group_of: Callable[[tuple[int, ...]], Group]) -> Mesh:
        """Assemble a rank's groups from what `group_of` makes of world ranks: it is called in the same order on every
        rank, once for each group of more than one."""
        made: dict[tuple[int, ...], Group] = {}
        own: dict[str, Group] = {}
        for name, all_ranks in degrees.groups().items():
            for ranks in map(tuple, all_ranks):
                if len(ranks) > 1 and ranks not in made:
                    made[ranks] = group_of(ranks)
                if rank in ranks:
                    own[name] = made.get(ranks) or LocalGroup()
        return cls(own["world"], own["tp"], own["sp"], own["cfg"], own["wide"])

    def close(self) -> None:
        """Give up whatever the groups hold."""
        for group in dict.fromkeys((self.tp, self.sp, self.cfg, self.wide, self.world)):  # one may be another
            group.close()
