"""How many ranks share the weights, the tokens and the segments of a step, and in which groups. Pure.

World rank (c · sp + s) · tp + t holds part t of the weights and part s of the tokens of the segments that guidance
group c steps: the ranks that exchange most, those of tensor parallelism, are neighbours, and the guidance groups, which
exchange least, are furthest apart.
"""

from __future__ import annotations

from dataclasses import dataclass

PARALLEL_DEGREES = (1, 2, 4)
MOST_RANKS = max(PARALLEL_DEGREES)
# The groups whose ranks exchange rows, each with each: of tokens, or of an image.
EXCHANGING = frozenset({"world", "sp", "wide"})


@dataclass(frozen=True)
class Degrees:
    """The numbers of ranks that share each matrix (tp) and each segment's tokens (sp), and of guidance groups,
    which step segments of their own (cfg: 1 or 2)."""

    tp: int = 1
    sp: int = 1
    cfg: int = 1

    @property
    def ranks(self) -> int:
        return self.tp * self.sp * self.cfg

    @property
    def name(self) -> str:
        """Such as one, tp2, sp4, tp2xsp2 and sp2xcfg."""
        parts = [f"{name}{degree}" for name, degree in (("tp", self.tp), ("sp", self.sp)) if degree > 1]
        return "x".join([*parts, *["cfg"] * (self.cfg > 1)]) or "one"

    def groups(self) -> dict[str, list[list[int]]]:
        """List the world ranks of every group, by the names of `Mesh`."""
        guidance, parts, shards = range(self.cfg), range(self.sp), range(self.tp)

        def rank(c: int, s: int, t: int) -> int:
            return (c * self.sp + s) * self.tp + t

        return {
            "world": [list(range(self.ranks))],
            "tp": [[rank(c, s, t) for t in shards] for c in guidance for s in parts],
            "sp": [[rank(c, s, t) for s in parts] for c in guidance for t in shards],
            "cfg": [[rank(c, s, t) for c in guidance] for s in parts for t in shards],
            "wide": [[rank(c, s, t) for c in guidance for s in parts] for t in shards],
        }

    def communicators(self, rank: int = 0) -> dict[tuple[int, ...], list[str]]:
        """Name the groups of more than one rank that a world rank is in, by their world ranks, which several share."""
        found: dict[tuple[int, ...], list[str]] = {}
        for name, all_ranks in self.groups().items():
            ranks = next(tuple(ranks) for ranks in all_ranks if rank in ranks)
            if len(ranks) > 1:
                found.setdefault(ranks, []).append(name)
        return found
