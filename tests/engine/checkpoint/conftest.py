"""Fixtures of the tests of checkpoints: parts of one as single files, and a copy to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.damage import copy_checkpoint
from tests.engine.checkpoint.layouts.layouts import (
    language_model,
    load_text_encoder,
    load_transformer,
    load_vae,
    native_transformer,
    prefixed,
    save,
    wan_vae,
)


@pytest.fixture(scope="session")
def single(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The small checkpoint as single files, somewhere else, in the layouts of ComfyUI."""
    folder = tmp_path_factory.mktemp("comfy")
    transformer = prefixed("model.diffusion_model.", native_transformer(load_transformer(turbo)))
    text_encoder = prefixed("model.", language_model(load_text_encoder(turbo)))
    files = {
        "transformer": save(transformer, folder / "diffusion_models/krea2.safetensors"),
        "text_encoder": save(text_encoder, folder / "text_encoders/qwen3vl.safetensors"),
        "vae": save(wan_vae(load_vae(turbo), 1), folder / "vae/vae.safetensors"),
        "tokenizer": shutil.copytree(turbo / "tokenizer", folder / "tokenizer") / "tokenizer.json",
    }
    return {part: str(file) for part, file in files.items()}


@pytest.fixture
def damaged(turbo: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return copy_checkpoint(turbo, tmp_path / "damaged")
