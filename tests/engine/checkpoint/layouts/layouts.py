"""The components of a small checkpoint, written to the files that people have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint.layouts.names import text_encoder_to_llama, transformer_to_native, vae_to_wan

Tensors = dict[str, torch.Tensor]


def load_transformer(folder: Path) -> Tensors:
    return load_file(folder / "transformer/diffusion_pytorch_model.safetensors")


def load_text_encoder(folder: Path) -> Tensors:
    return load_file(folder / "text_encoder/model.safetensors")


def load_vae(folder: Path) -> Tensors:
    return load_file(folder / "vae/diffusion_pytorch_model.safetensors")


def save(tensors: Mapping[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file, metadata)
    return file


def renamed(tensors: Mapping[str, torch.Tensor], name: Callable[[str], str | None]) -> Tensors:
    """With every tensor under another name; all must have one."""
    result = {}
    for old, tensor in tensors.items():
        new = name(old)
        assert new is not None, old
        result[new] = tensor
    return result


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def native_transformer(tensors: Tensors) -> Tensors:
    """As the official single files have it: block modulation is flat."""
    native = renamed(tensors, transformer_to_native)
    return {name: tensor.flatten() if name.endswith("mod.lin") else tensor for name, tensor in native.items()}


def language_model(tensors: Tensors) -> Tensors:
    """Of a text encoder, without a prefix."""
    prefix = "language_model."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def llama_text_encoder(tensors: Tensors) -> Tensors:
    return renamed(language_model(tensors), text_encoder_to_llama)


def wan_vae(tensors: Tensors, res_blocks: int) -> Tensors:
    return renamed(tensors, lambda name: vae_to_wan(name, res_blocks))
