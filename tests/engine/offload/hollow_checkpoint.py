"""A checkpoint of any size whose files are headers and nothing behind them: sparse, of a few kilobytes on the disk."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path

from engine.checkpoint.convert.config_json import config_files
from engine.checkpoint.layouts.tensors import (
    Source,
    text_encoder_sources,
    transformer_sources,
    vae_encoder_sources,
    vae_sources,
)
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig


def write_hollow_checkpoint(folder: Path, model: ModelConfig) -> Path:
    """Write a folder in the diffusers layout, in bfloat16, with the demo's tokenizer."""
    for name, content in config_files(model).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    _write_hollow(
        folder / "transformer/diffusion_pytorch_model.safetensors", "", transformer_sources(model.transformer)
    )
    _write_hollow(folder / "text_encoder/model.safetensors", "language_model.", text_encoder_sources(model))
    vae = [*vae_sources(model.vae), *vae_encoder_sources(model.vae)]
    _write_hollow(folder / "vae/diffusion_pytorch_model.safetensors", "", vae)
    (folder / "tokenizer").symlink_to(DEMO_CHECKPOINT / "tokenizer")
    return folder


def _write_hollow(file: Path, prefix: str, sources: Iterable[Source]) -> None:
    header, end = {}, 0
    for source in sources:
        start, end = end, end + 2 * math.prod(source.shape)
        header[prefix + source.name] = {"dtype": "BF16", "shape": list(source.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + end)
