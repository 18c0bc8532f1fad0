"""How ranks share a step: their groups, which segments each half of them gets, and how much they send. Pure.

World rank (c · sp + s) · tp + t holds part t of the weights and part s of the tokens of the segments that half c steps:
the ranks that exchange most, those of tensor parallelism, are neighbours, and the halves, which exchange least, are
furthest apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.component_config import TransformerConfig

# How many times its even part a half may have to step. Beyond that all ranks share all tokens, and exchange more.
UNEVEN = 1.25
# The groups whose ranks exchange rows, each with each: of tokens, or of an image.
EXCHANGING = frozenset({"world", "sp", "wide"})
_FLOAT32 = 4  # bytes of an element of velocities


@dataclass(frozen=True)
class Degrees:
    """How many ranks share weights, tokens and segments."""

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

    def wide_divides(self, config: TransformerConfig) -> bool:
        """Whether all ranks can share the tokens that two halves would step apart: heads divide by so many."""
        return not config.undivided_heads(self.ranks)

    def groups(self) -> dict[str, list[list[int]]]:
        """The world ranks of every group, by the names of `Mesh`."""
        halves, parts, shards = range(self.cfg), range(self.sp), range(self.tp)

        def rank(c: int, s: int, t: int) -> int:
            return (c * self.sp + s) * self.tp + t

        return {
            "world": [list(range(self.ranks))],
            "tp": [[rank(c, s, t) for t in shards] for c in halves for s in parts],
            "sp": [[rank(c, s, t) for s in parts] for c in halves for t in shards],
            "cfg": [[rank(c, s, t) for c in halves] for s in parts for t in shards],
            "wide": [[rank(c, s, t) for c in halves for s in parts] for t in shards],
        }

    def communicators(self, rank: int = 0) -> dict[tuple[int, ...], list[str]]:
        """The groups of more than one rank that a world rank is in, by their world ranks: each one's names, which may
        be several."""
        found: dict[tuple[int, ...], list[str]] = {}
        for name, all_ranks in self.groups().items():
            ranks = next(tuple(ranks) for ranks in all_ranks if rank in ranks)
            if len(ranks) > 1:
                found.setdefault(ranks, []).append(name)
        return found


@dataclass(frozen=True)
class Halves:
    """Which segments each group of ranks steps, by index; even: whether none has much more to do than another."""

    members: list[list[int]]
    even: bool


def divide_segments(tokens: Sequence[int], groups: int) -> Halves:
    """Give segments of so many tokens to groups of ranks: the longest first, each to the group that has the least."""
    members: list[list[int]] = [[] for _ in range(groups)]
    loads = [0] * groups
    for index in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        group = loads.index(min(loads))
        members[group].append(index)
        loads[group] += tokens[index]
    return Halves([sorted(each) for each in members], max(loads) * groups <= UNEVEN * sum(tokens))


@dataclass(frozen=True)
class Forward:
    """A part of a step: the segments, by index, that so many ranks (or as many `tp` groups) take through the model,
    sharing their tokens."""

    segments: list[int]
    ranks: int


def forwards(config: TransformerConfig, tokens: Sequence[int], degrees: Degrees) -> list[Forward]:
    """Who steps what of segments that have so many tokens each: each half of the ranks its own, or all of them all."""
    halves = divide_segments(tokens, degrees.cfg)
    if not halves.even and degrees.wide_divides(config):
        return [Forward(list(range(len(tokens))), degrees.sp * degrees.cfg)]
    return [Forward(members, degrees.sp) for members in halves.members]


@dataclass(frozen=True)
class Sent:
    """By one rank: bytes, in so many operations that wait for the other ranks."""

    bytes: int = 0
    operations: int = 0

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.bytes + other.bytes, self.operations + other.operations)

    def __sub__(self, other: Sent) -> Sent:
        return Sent(self.bytes - other.bytes, self.operations - other.operations)

    def times(self, count: int) -> Sent:
        return Sent(self.bytes * count, self.operations * count)

    def seconds(self, bytes_per_s: float, latency_s: float) -> float:
        """Nothing overlapping anything."""
        return self.bytes / bytes_per_s + self.operations * latency_s


def sent_in_step(
    config: TransformerConfig,
    segments: Sequence[tuple[int, int]],
    degrees: Degrees,
    bytes_per_element: int,
    rank: int = 0,
    *,
    fp8: bool = False,
) -> Sent:
    """What world rank `rank` sends in one denoise step of segments of so many (text tokens, image tokens). fp8: blocks
    take fp8 rows.

    Counted as a ring sends it: a sum of which each of p ranks keeps a part (p − 1) / p of its bytes, a gathering p − 1
    times a rank's own, an exchange what is not for the rank itself. `bench.scaling` checks it against ranks that count.
    """
    tp, cfg = degrees.tp, degrees.cfg
    parts = forwards(config, [sum(segment) for segment in segments], degrees)
    ranks = parts[0].ranks
    tokens, rows, most = _rows_of(parts, segments, degrees, rank)
    sent = Sent()
    if tp > 1 and tokens:
        width, most_kept = config.hidden_size, -(-rows // tp)  # rows are filled up to so many for every rank
        summed = Sent((tp - 1) * most_kept * width * bytes_per_element, 1)
        gathered = Sent((tp - 1) * most_kept * (width + _FLOAT32), 1) if fp8 else summed
        sent += (summed + gathered).times(2 * config.num_layers)
        sent += Sent((tp - 1) * most_kept * config.in_channels * _FLOAT32, 1)
    if ranks > 1 and tokens:
        sent += sum(exchanged_in_step(config, segments, degrees, bytes_per_element, rank), Sent())
        sent += Sent((ranks - 1) * most * config.in_channels * _FLOAT32, 1)
    if len(parts) > 1:
        images = max(sum(segments[i][1] for i in each.segments) for each in parts)
        sent += Sent((cfg - 1) * images * config.in_channels * _FLOAT32, 1)
    return sent


def exchanged_in_step(
    config: TransformerConfig,
    segments: Sequence[tuple[int, int]],
    degrees: Degrees,
    bytes_per_element: int,
    rank: int = 0,
) -> tuple[Sent, Sent]:
    """What of `sent_in_step` is rows for heads around attention: on the way in, while the gate is computed, and out."""
    parts = forwards(config, [sum(segment) for segment in segments], degrees)
    ranks = parts[0].ranks
    tokens, rows, _ = _rows_of(parts, segments, degrees, rank)
    if ranks == 1 or not tokens:
        return Sent(), Sent()
    heads, kv_heads = config.num_heads // (degrees.tp * ranks), config.num_kv_heads // (degrees.tp * ranks)
    head = config.head_dim * bytes_per_element
    inwards = Sent((ranks - 1) * rows * (heads + 2 * kv_heads) * head, 1)
    outwards = Sent((tokens - rows) * heads * head, 1)
    return inwards.times(config.num_layers), outwards.times(config.num_layers)


def _rows_of(
    parts: Sequence[Forward], segments: Sequence[tuple[int, int]], degrees: Degrees, rank: int
) -> tuple[int, int, int]:
    """The tokens that a rank and others take through the model, how many of them it has, and the most that one has."""
    ranks = parts[0].ranks
    half, part = divmod(rank // degrees.tp, ranks)
    tokens = sum(sum(segments[i]) for i in parts[half].segments)
    most = -(-tokens // ranks)
    return tokens, max(0, min(most, tokens - part * most)), most
