"""Which segments of a step each group of ranks gets, and how much ranks send each other in it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.components import TransformerConfig
from engine.config.degrees import Degrees
from engine.step_cache.settings import StepCache

# How many times its even part a group may have to step. Beyond that all ranks share all tokens, and exchange more.
UNEVEN = 1.25
_FLOAT32 = 4  # bytes of an element of velocities, and of a row's fp8 scale


def divide_segments(tokens: Sequence[int], groups: int) -> tuple[list[list[int]], bool]:
    """Divide segments, given by their tokens, among groups of ranks: the longest first, to the group with the least.
    Returns each group's segments, by index, and whether they are even: whether no group has much more to do."""
    members: list[list[int]] = [[] for _ in range(groups)]
    loads = [0] * groups
    for index in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        group = loads.index(min(loads))
        members[group].append(index)
        loads[group] += tokens[index]
    return [sorted(each) for each in members], max(loads) * groups <= UNEVEN * sum(tokens)


def shares_all_tokens(cache: StepCache | None) -> bool:
    """Whether the images of a cache need all ranks to share all tokens of a step: a rank then knows what it needs of
    earlier steps, whichever images it meets. They cannot where the ranks do not divide the heads."""
    return cache is not None and cache.method == "blocks"


def forward_passes(
    config: TransformerConfig, tokens: Sequence[int], degrees: Degrees, *, together: bool = False
) -> tuple[list[list[int]], int]:
    """Divide a step of segments, given by their tokens: with guidance split (`--cfg-parallel`) each group of ranks
    steps its own, or all ranks step all, which they also do if they are to work `together`. Returns the segments, by
    index, of each forward pass, and how many ranks, or `tp` groups, take them through the model together, sharing their
    tokens."""
    members, even = divide_segments(tokens, degrees.cfg)
    if together or (not even and not config.undivided_heads(degrees.ranks)):
        return [list(range(len(tokens)))], degrees.sp * degrees.cfg
    return members, degrees.sp


@dataclass(frozen=True)
class Traffic:
    """What one rank sends: bytes, and the number of operations, each of which waits for the other ranks."""

    bytes: int = 0
    operations: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes + other.bytes, self.operations + other.operations)

    def times(self, count: int) -> Traffic:
        return Traffic(self.bytes * count, self.operations * count)

    def seconds(self, bytes_per_s: float, latency_s: float) -> float:
        """Estimate how long it takes where nothing else goes on meanwhile."""
        return self.bytes / bytes_per_s + self.operations * latency_s


def sent_in_step(
    config: TransformerConfig,
    segments: Sequence[tuple[int, int]],
    degrees: Degrees,
    bytes_per_element: int,
    rank: int = 0,
    *,
    fp8: bool = False,
) -> tuple[Traffic, Traffic, Traffic]:
    """Count what world rank `rank` sends in one denoise step: where it exchanges rows for heads on the way into
    attention, while the gate is computed; where it does so on the way out; and in all other operations.

    segments: each one's (text tokens, image tokens). fp8: blocks take fp8 rows. Counted as a ring sends it: of a sum
    whose parts stay on p ranks (p − 1) / p of its bytes, of a gathering p − 1 times a rank's own, of an exchange what
    is not for the rank itself. `bench.scaling` checks it against ranks that count.
    """
    tp, layers = degrees.tp, config.num_layers
    parts, ranks = forward_passes(config, [sum(segment) for segment in segments], degrees)
    group, place = divmod(rank // tp, ranks)
    tokens = sum(sum(segments[i]) for i in parts[group])
    most = -(-tokens // ranks)  # rows of a rank, the last ones' being fewer or none
    rows = max(0, min(most, tokens - place * most))
    velocity = config.in_channels * _FLOAT32  # of one row
    inwards = outwards = others = Traffic()
    if tp > 1 and tokens:
        own = -(-rows // tp)  # of every rank, the last ones' being filled up
        summed = Traffic((tp - 1) * own * config.hidden_size * bytes_per_element, 1)
        gathered = Traffic((tp - 1) * own * (config.hidden_size + _FLOAT32), 1) if fp8 else summed
        others += (summed + gathered).times(2 * layers) + Traffic((tp - 1) * own * velocity, 1)
    if ranks > 1 and tokens:
        heads, kv_heads = config.num_heads // (tp * ranks), config.num_kv_heads // (tp * ranks)
        head = config.head_dim * bytes_per_element
        inwards = Traffic((ranks - 1) * rows * (heads + 2 * kv_heads) * head, 1).times(layers)
        outwards = Traffic((tokens - rows) * heads * head, 1).times(layers)
        others += Traffic((ranks - 1) * most * velocity, 1)
    if len(parts) > 1:
        images = max(sum(segments[i][1] for i in part) for part in parts)
        others += Traffic((degrees.cfg - 1) * images * velocity, 1)
    return inwards, outwards, others
