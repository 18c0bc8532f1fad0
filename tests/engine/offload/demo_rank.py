"""A rank of the demo with weights in host memory, and all that it may leave there."""

from __future__ import annotations

from typing import Any

import torch

from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER, VAE, EngineConfig
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from engine.step import Job, Step

CPU = torch.device("cpu")
COMBINATIONS = [
    (DIT_LAYERWISE,),
    (TEXT_ENCODER,),
    (VAE,),
    (DIT,),
    (DIT, TEXT_ENCODER, VAE),
    (DIT_LAYERWISE, TEXT_ENCODER, VAE),
]


def make_rank(folder: str = "demo", **options: Any) -> Rank:
    return Rank(EngineConfig(model=folder, **options), Mesh(), CPU)


def draw(rank: Rank, steps: int = 2) -> None:
    """One image, from its prompt to its pixels."""
    job = Job(0, tuple(range(34 + 20)), None, 64, 64, steps, 0.0, None, 0)
    for number in range(steps):
        rank.execute(Step(number, start=() if number else (job,), denoise=(0,))).wait()
    rank.execute(Step(steps, decode=(0,))).wait()
    rank.close()
