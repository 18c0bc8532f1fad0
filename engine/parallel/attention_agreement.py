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
    """Agree on each backend's longest time over all ranks, and on why backends are refused, which one rank can do.

    Every rank must call it. A step takes as long as its slowest rank, and different backends on different ranks would
    make an image differ from one start to the next.
    """
    if world.size == 1:
        return timings, refused

    def times(backend: str) -> tuple[float, float]:
        if backend in refused:
            return math.inf, math.inf
        timing = timings.get(backend, Timing(0.0, 0.0))
        return timing.first_ms, timing.steady_ms

    own = torch.tensor([[number for backend in BACKENDS for number in times(backend)]], device=device)
    every = world.all_gather(own).view(world.size, len(BACKENDS), 2).tolist()
    agreed, refusals = {}, {}
    for index, backend in enumerate(BACKENDS):
        first, steady = (max(ranks[index][i] for ranks in every) for i in range(2))
        refusers = [rank for rank, ranks in enumerate(every) if ranks[index][0] == math.inf]
        if refusers:
            refusals[backend] = refused.get(backend, f"rank {refusers[0]} cannot use it")
        elif first > 0:
            agreed[backend] = Timing(first, steady)
    return agreed, refusals
