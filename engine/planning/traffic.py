"""How much ranks send each other in a denoise step. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.components import TransformerConfig
from engine.config.degrees import Degrees
from engine.planning.work_division import ForwardPass, forward_passes

_FLOAT32 = 4  # bytes of an element of velocities, and of a row's fp8 scale


@dataclass(frozen=True)
class Traffic:
    """What one rank sends: bytes, and the number of operations, each of which waits for the other ranks."""

    bytes: int = 0
    operations: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes + other.bytes, self.operations + other.operations)

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes - other.bytes, self.operations - other.operations)

    def times(self, count: int) -> Traffic:
        return Traffic(self.bytes * count, self.operations * count)

    def seconds(self, bytes_per_s: float, latency_s: float) -> float:
        """How long it takes where nothing else goes on meanwhile."""
        return self.bytes / bytes_per_s + self.operations * latency_s


def sent_in_step(
    config: TransformerConfig,
    segments: Sequence[tuple[int, int]],
    degrees: Degrees,
    bytes_per_element: int,
    rank: int = 0,
    *,
    fp8: bool = False,
) -> Traffic:
    """Count what world rank `rank` sends in one denoise step. segments: each one's (text tokens, image tokens). fp8:
    blocks take fp8 rows.

    Counted as a ring sends it: of a sum whose parts stay on p ranks (p − 1) / p of its bytes, of a gathering p − 1
    times a rank's own, of an exchange what is not for the rank itself. `bench.scaling` checks it against ranks that
    count.
    """
    tp, cfg = degrees.tp, degrees.cfg
    parts = forward_passes(config, [sum(segment) for segment in segments], degrees)
    ranks = parts[0].ranks
    tokens, rows, most = _rows_of(parts, segments, degrees, rank)
    velocity = config.in_channels * _FLOAT32  # of one row
    traffic = Traffic()
    if tp > 1 and tokens:
        own = -(-rows // tp)  # of every rank, the last ones' being filled up
        summed = Traffic((tp - 1) * own * config.hidden_size * bytes_per_element, 1)
        gathered = Traffic((tp - 1) * own * (config.hidden_size + _FLOAT32), 1) if fp8 else summed
        traffic += (summed + gathered).times(2 * config.num_layers) + Traffic((tp - 1) * own * velocity, 1)
    if ranks > 1 and tokens:
        traffic += sum(exchanged_in_step(config, segments, degrees, bytes_per_element, rank), Traffic())
        traffic += Traffic((ranks - 1) * most * velocity, 1)
    if len(parts) > 1:
        images = max(sum(segments[i][1] for i in each.segments) for each in parts)
        traffic += Traffic((cfg - 1) * images * velocity, 1)
    return traffic


def exchanged_in_step(
    config: TransformerConfig,
    segments: Sequence[tuple[int, int]],
    degrees: Degrees,
    bytes_per_element: int,
    rank: int = 0,
) -> tuple[Traffic, Traffic]:
    """Count what of `sent_in_step` exchanges rows for heads around attention: on the way in, while the gate is
    computed, and on the way out."""
    parts = forward_passes(config, [sum(segment) for segment in segments], degrees)
    ranks = parts[0].ranks
    tokens, rows, _ = _rows_of(parts, segments, degrees, rank)
    if ranks == 1 or not tokens:
        return Traffic(), Traffic()
    heads, kv_heads = config.num_heads // (degrees.tp * ranks), config.num_kv_heads // (degrees.tp * ranks)
    head = config.head_dim * bytes_per_element
    inwards = Traffic((ranks - 1) * rows * (heads + 2 * kv_heads) * head, 1)
    outwards = Traffic((tokens - rows) * heads * head, 1)
    return inwards.times(config.num_layers), outwards.times(config.num_layers)


def _rows_of(
    parts: Sequence[ForwardPass], segments: Sequence[tuple[int, int]], degrees: Degrees, rank: int
) -> tuple[int, int, int]:
    """The tokens of the forward pass that a rank takes part in, how many of them it has, and the most that one has."""
    group, place = divmod(rank // degrees.tp, parts[0].ranks)
    tokens = sum(sum(segments[i]) for i in parts[group].segments)
    most = -(-tokens // parts[0].ranks)
    return tokens, max(0, min(most, tokens - place * most)), most
