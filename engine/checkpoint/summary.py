"""How large a checkpoint is, and what each rank holds of it. Reads headers only and imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.files import CheckpointFiles
from engine.config import ModelConfig

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class ComponentSummary:
    """One component: parameters that are used, and the bytes that each rank holds of them (rank 0 first)."""

    name: str
    parameters: int
    bytes_per_rank: tuple[int, ...]


def summarize(folder: Path, config: ModelConfig, tp: int, bytes_per_element: int) -> list[ComponentSummary]:
    """Sum up the tensors that inference needs, at `bytes_per_element` (2 for bfloat16) but for those kept in float32.

    Raises `CheckpointError` if a header does not fit the config, `ArgumentError` if `tp` does not divide the model.
    """
    config.check_tp(tp)
    checkpoint = CheckpointFiles(folder, config)
    summaries = []
    for name, sources in checkpoint.sources.items():
        parameters = held = 0
        for source in sources:
            parameters += math.prod(source.shard_shape(1))
            held += math.prod(source.shard_shape(tp)) * (FLOAT32_BYTES if source.float32 else bytes_per_element)
        on_rank_0_only = name == "vae"
        bytes_per_rank = tuple(held if rank == 0 or not on_rank_0_only else 0 for rank in range(tp))
        summaries.append(ComponentSummary(name, parameters, bytes_per_rank))
    checkpoint.close()
    return summaries
