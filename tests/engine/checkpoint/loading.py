"""Loading a checkpoint, and the error that it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.engine_config import EngineConfig
from engine.errors import CheckpointError
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


def load(folder: Path, **options: Any) -> Rank:
    return Rank(EngineConfig(model=str(folder), device="cpu", **options), Mesh(), torch.device("cpu"))


def refusal(folder: Path) -> str:
    """The error that loading gives: one line that starts with a path inside the folder."""
    with pytest.raises(CheckpointError) as error:
        load(folder)
    assert error.value.message.startswith(str(folder))
    assert len(error.value.message.splitlines()) == 1
    return error.value.message.removeprefix(f"{folder}/")
