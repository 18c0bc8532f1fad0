"""The VAE's encoder goes along into every layout, where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert.convert import convert
from engine.checkpoint.layouts.tensors import is_vae_encoder, sources_by_parameter
from engine.checkpoint.load import LoadOptions, read_parameter
from engine.config.components import VAE_ENCODER
from engine.config.engine_config import EngineConfig
from engine.errors import CheckpointError
from tests.damage import copy_checkpoint, rewrite_tensors


def encoder_parameters(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """The encoder, as a rank reads it."""
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(folder), **options))
    by_parameter = sources_by_parameter(checkpoint.sources[VAE_ENCODER])
    loading = LoadOptions(torch.device("cpu"), torch.float32)
    return {
        name: read_parameter(sources, checkpoint, VAE_ENCODER, 0, 1, loading).values
        for name, sources in by_parameter.items()
    }


def test_every_layout_keeps_the_encoder(turbo: Path, tmp_path: Path) -> None:
    expected = encoder_parameters(turbo)
    assert {name.partition(".")[0] for name in expected} == {"encoder", "quant_conv"}
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    convert(checkpoint, tmp_path / "diffusers", layout="diffusers", weights="float32")
    convert(checkpoint, tmp_path / "split", layout="sharded", weights="float32", tp=2)
    convert(checkpoint, tmp_path / "vae.safetensors", layout="native", weights="keep", component="vae")
    for found in (
        encoder_parameters(tmp_path / "diffusers"),
        encoder_parameters(tmp_path / "split", tp=2),
        encoder_parameters(turbo, vae=str(tmp_path / "vae.safetensors")),
    ):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_checkpoint_without_an_encoder_is_split_without_one(turbo: Path, tmp_path: Path) -> None:
    source = copy_checkpoint(turbo, tmp_path / "source")
    vae = source / "vae/diffusion_pytorch_model.safetensors"
    rewrite_tensors(vae, lambda tensors: [tensors.pop(name) for name in list(tensors) if is_vae_encoder(name)])
    with pytest.raises(CheckpointError, match=r"encoder\.conv_in\.weight: tensor is missing, which encodes"):
        CheckpointFiles.open(EngineConfig(model=str(source)))
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(source)), as_it_is=True)
    convert(checkpoint, tmp_path / "split", layout="sharded", weights="keep")
    with pytest.raises(CheckpointError, match=r"rank-0/vae\.safetensors: encoder\.conv_in\.weight: tensor is missing"):
        CheckpointFiles.open(EngineConfig(model=str(tmp_path / "split")))
    split = CheckpointFiles.open(EngineConfig(model=str(tmp_path / "split"), image_input=False))
    assert VAE_ENCODER not in split.sources
