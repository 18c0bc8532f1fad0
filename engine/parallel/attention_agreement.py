"""Ranks that step together attend alike: what one of them measured, or cannot use, counts for all."""

from __future__ import annotations

import math

import torch

from engine.kernels.attention.backends import BACKENDS
from engine.kernels.attention.choice import Timing
from engine.parallel.group import Group


def agree_on_attention(
    world: Group, device: torch.device, timings: dict[str, Timing], refused: dict[str, str]
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Agree on each backend's longest times over all ranks, and on refusals and their reasons: one rank's is enough.

    Every rank must call it. A backend that no rank timed or refused is left out. A step takes as long as its slowest
    rank, and different backends on different ranks would make an image differ from one start to the next.
    """
    if world.size == 1:
        return timings, refused
    known = timings | dict.fromkeys(refused, Timing(math.inf, math.inf))
    own = [known.get(backend, Timing(0.0, 0.0)) for backend in BACKENDS]
    row = torch.tensor([[number for timing in own for number in (timing.first_ms, timing.steady_ms)]], device=device)
    every = world.all_gather(row).view(world.size, len(BACKENDS), 2).tolist()
    agreed, refusals = {}, {}
    for backend, by_rank in zip(BACKENDS, zip(*every, strict=True), strict=True):
        first, steady = map(max, zip(*by_rank, strict=True))
        if first == math.inf:
            refuser = [first for first, _ in by_rank].index(math.inf)
            refusals[backend] = refused.get(backend, f"rank {refuser} cannot use it")
        elif first > 0:
            agreed[backend] = Timing(first, steady)
    return agreed, refusals
