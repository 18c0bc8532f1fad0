"""The groups of a rank: with which ranks it shares weights, tokens and segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.config.degrees import Degrees
from engine.parallel.group import Group, LocalGroup
from engine.parallel.thread_group import RankThread, thread_groups


@dataclass(frozen=True)
class Mesh:
    """The groups of one rank; without arguments those of a rank that is alone.

    tp: whose ranks hold the parts of every matrix. sp: whose ranks hold parts of the same tokens, and the same weights.
    cfg: whose ranks step different segments, as the two of a guided image are. wide: of sp and cfg together, for steps
    whose segments do not divide evenly over cfg. sharing: how many of the ranks compute on one GPU, at most, None where
    nobody has looked.
    """

    world: Group = field(default_factory=LocalGroup)
    tp: Group = field(default_factory=LocalGroup)
    sp: Group = field(default_factory=LocalGroup)
    cfg: Group = field(default_factory=LocalGroup)
    wide: Group = field(default_factory=LocalGroup)
    sharing: int | None = None

    @classmethod
    def build(cls, rank: int, degrees: Degrees, group_of: Callable[[tuple[int, ...]], Group]) -> Mesh:
        """Assemble a rank's groups from those that `group_of` makes of world ranks: it is called in the same order on
        every rank, once for each group of more than one."""
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
        """Give up whatever the groups hold. Ranks that are threads and wait for this one get a `RankError`."""
        for group in dict.fromkeys((self.tp, self.sp, self.cfg, self.wide, self.world)):  # one may be another
            group.close()


def thread_meshes(degrees: Degrees, timeout_s: float = 60.0, *, spoils: bool = False) -> list[Mesh]:
    """Make the meshes of ranks that are threads. timeout_s, spoils: as in `thread_groups`."""
    threads = [RankThread() for _ in range(degrees.ranks)]
    made: dict[tuple[int, ...], Sequence[Group]] = {}

    def mesh(rank: int) -> Mesh:
        def group_of(ranks: tuple[int, ...]) -> Group:
            if ranks not in made:
                own = [threads[each] for each in ranks]
                name = f"the group of ranks {', '.join(map(str, ranks))}"
                made[ranks] = thread_groups(len(ranks), timeout_s, threads=own, name=name, spoils=spoils)
            return made[ranks][ranks.index(rank)] if rank in ranks else LocalGroup()

        return Mesh.build(rank, degrees, group_of)

    return [mesh(rank) for rank in range(degrees.ranks)]
