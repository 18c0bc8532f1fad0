"""Which segments of a step each group of ranks gets, where guidance is split (`--cfg-parallel`). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.components import TransformerConfig
from engine.config.degrees import Degrees

# How many times its even part a group may have to step. Beyond that all ranks share all tokens, and exchange more.
UNEVEN = 1.25


@dataclass(frozen=True)
class GuidanceSplit:
    """Which segments each group of ranks steps, by index; even: whether none has much more to do than another."""

    members: list[list[int]]
    even: bool


def divide_segments(tokens: Sequence[int], groups: int) -> GuidanceSplit:
    """Divide segments, given by their tokens, among groups of ranks: the longest first, to the group with the least."""
    members: list[list[int]] = [[] for _ in range(groups)]
    loads = [0] * groups
    for index in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        group = loads.index(min(loads))
        members[group].append(index)
        loads[group] += tokens[index]
    return GuidanceSplit([sorted(each) for each in members], max(loads) * groups <= UNEVEN * sum(tokens))


@dataclass(frozen=True)
class ForwardPass:
    """A part of a step: the segments, by index, that `ranks` ranks, or as many `tp` groups, take through the model
    together, sharing their tokens."""

    segments: list[int]
    ranks: int


def forward_passes(config: TransformerConfig, tokens: Sequence[int], degrees: Degrees) -> list[ForwardPass]:
    """Divide a step of segments, given by their tokens: each group of ranks steps its own, or all ranks step all."""
    split = divide_segments(tokens, degrees.cfg)
    if not split.even and not config.undivided_heads(degrees.ranks):
        return [ForwardPass(list(range(len(tokens))), degrees.sp * degrees.cfg)]
    return [ForwardPass(members, degrees.sp) for members in split.members]
