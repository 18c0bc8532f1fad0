"""The config that a model put together has."""

from __future__ import annotations

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig


def open_config(**options: str | None) -> ModelConfig:
    checkpoint = CheckpointFiles.open(EngineConfig(**options))  # type: ignore[arg-type]
    checkpoint.close()
    return checkpoint.config
