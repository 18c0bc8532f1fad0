"""Which segments of a step each half of the ranks gets. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.components import TransformerConfig
from engine.config.degrees import Degrees

# How many times its even part a half may have to step. Beyond that all ranks share all tokens, and exchange more.
UNEVEN = 1.25


@dataclass(frozen=True)
class GuidanceSplit:
    """Which segments each group of ranks steps, by index; even: whether none has much more to do than another."""

    members: list[list[int]]
    even: bool


def divide_segments(tokens: Sequence[int], groups: int) -> GuidanceSplit:
    """Give segments of so many tokens to groups of ranks: the longest first, each to the group that has the least."""
    members: list[list[int]] = [[] for _ in range(groups)]
    loads = [0] * groups
    for index in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        group = loads.index(min(loads))
        members[group].append(index)
        loads[group] += tokens[index]
    return GuidanceSplit([sorted(each) for each in members], max(loads) * groups <= UNEVEN * sum(tokens))


@dataclass(frozen=True)
class ForwardPass:
    """A part of a step: the segments, by index, that so many ranks (or as many `tp` groups) take through the model,
    sharing their tokens."""

    segments: list[int]
    ranks: int


def forward_passes(config: TransformerConfig, tokens: Sequence[int], degrees: Degrees) -> list[ForwardPass]:
    """Who steps what of segments that have so many tokens each: each half of the ranks its own, or all of them all."""
    split = divide_segments(tokens, degrees.cfg)
    if not split.even and degrees.wide_divides(config):
        return [ForwardPass(list(range(len(tokens))), degrees.sp * degrees.cfg)]
    return [ForwardPass(members, degrees.sp) for members in split.members]
