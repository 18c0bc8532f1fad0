"""How much ranks send each other in a denoise step. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.components import TransformerConfig
from engine.config.degrees import Degrees
from engine.planning.work_division import ForwardPass, forward_passes

_FLOAT32 = 4  # bytes of an element of velocities


@dataclass(frozen=True)
class Traffic:
    """By one rank: bytes, in so many operations that wait for the other ranks."""

    bytes: int = 0
    operations: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes + other.bytes, self.operations + other.operations)

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes - other.bytes, self.operations - other.operations)

    def times(self, count: int) -> Traffic:
        return Traffic(self.bytes * count, self.operations * count)

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
) -> Traffic:
    """What world rank `rank` sends in one denoise step of segments of so many (text tokens, image tokens). fp8: blocks
    take fp8 rows.

    Counted as a ring sends it: a sum of which each of p ranks keeps a part (p − 1) / p of its bytes, a gathering p − 1
    times a rank's own, an exchange what is not for the rank itself. `bench.scaling` checks it against ranks that count.
    """
    tp, cfg = degrees.tp, degrees.cfg
    parts = forward_passes(config, [sum(segment) for segment in segments], degrees)
    ranks = parts[0].ranks
    tokens, rows, most = _rows_of(parts, segments, degrees, rank)
    sent = Traffic()
    if tp > 1 and tokens:
        width, most_kept = config.hidden_size, -(-rows // tp)  # rows are filled up to so many for every rank
        summed = Traffic((tp - 1) * most_kept * width * bytes_per_element, 1)
        gathered = Traffic((tp - 1) * most_kept * (width + _FLOAT32), 1) if fp8 else summed
        sent += (summed + gathered).times(2 * config.num_layers)
        sent += Traffic((tp - 1) * most_kept * config.in_channels * _FLOAT32, 1)
    if ranks > 1 and tokens:
        sent += sum(exchanged_in_step(config, segments, degrees, bytes_per_element, rank), Traffic())
        sent += Traffic((ranks - 1) * most * config.in_channels * _FLOAT32, 1)
    if len(parts) > 1:
        images = max(sum(segments[i][1] for i in each.segments) for each in parts)
        sent += Traffic((cfg - 1) * images * config.in_channels * _FLOAT32, 1)
    return sent


def exchanged_in_step(
    config: TransformerConfig,
    segments: Sequence[tuple[int, int]],
    degrees: Degrees,
    bytes_per_element: int,
    rank: int = 0,
) -> tuple[Traffic, Traffic]:
    """What of `sent_in_step` is rows for heads around attention: on the way in, while the gate is computed, and out."""
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
    """The tokens that a rank and others take through the model, how many of them it has, and the most that one has."""
    ranks = parts[0].ranks
    half, part = divmod(rank // degrees.tp, ranks)
    tokens = sum(sum(segments[i]) for i in parts[half].segments)
    most = -(-tokens // ranks)
    return tokens, max(0, min(most, tokens - part * most)), most
