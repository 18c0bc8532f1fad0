"""Adapters for tests: random ones of every family, written by every naming scheme, and merged by plain formulas."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint.layouts.names import linear_modules, vector_parameters
from engine.checkpoint.layouts.tensors import transformer_sources
from engine.config.components import TransformerConfig
from engine.config.model_config import ModelConfig

ALPHA = 3.0


class LowRank(NamedTuple):
    """What a layer's weight gets: up @ down."""

    down: torch.Tensor
    up: torch.Tensor


def layer_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every linear layer of a checkpoint's transformer."""
    config = ModelConfig.from_folder(folder).transformer
    shapes = {source.name: source.shape for source in transformer_sources(config)}
    return {layer: (shape[0], shape[1]) for layer, _ in linear_modules(config) if (shape := shapes[f"{layer}.weight"])}


def vector_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every norm's weight and modulation table of a checkpoint's transformer."""
    config = ModelConfig.from_folder(folder).transformer
    shapes = {source.name: source.shape for source in transformer_sources(config)}
    return {name: shapes[name] for name, _ in vector_parameters(config)}


def draw_vectors(folder: Path, *, seed: int = 0, size: float = 0.3) -> dict[str, torch.Tensor]:
    """A difference of each of these."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * size for name, shape in vector_shapes(folder).items()}


def native_names(config: TransformerConfig) -> dict[str, str]:
    return dict(linear_modules(config))


def random_matrix(rows: int, columns: int, generator: torch.Generator, size: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=generator) * size


def draw_low_rank(
    shapes: Mapping[str, tuple[int, int]], *, rank: int = 4, seed: int = 0, size: float = 0.3
) -> dict[str, LowRank]:
    """A change of every layer, about `size` of its weights; q, k and v of a block share their `down`, as they do in
    files that have them as one matrix."""
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, LowRank] = {}
    for layer, (rows, columns) in shapes.items():
        down = random_matrix(rank, columns, generator, columns**-0.5)
        if layer.endswith((".to_k", ".to_v")):
            down = result[f"{layer[:-1]}q"].down
        result[layer] = LowRank(down, random_matrix(rows, rank, generator, size * rank**-0.5))
    return result


# ---- naming schemes

Tensors = dict[str, torch.Tensor]


def _dotted(prefix: str, down: str, up: str, *, native: bool, alpha: bool = False) -> Callable[..., Tensors]:
    def write(change: Mapping[str, LowRank], natives: Mapping[str, str]) -> Tensors:
        tensors = {}
        for layer, (a, b) in change.items():
            path = prefix + (natives[layer] if native else layer)
            tensors |= _low_rank(path, down, up, a, b, alpha=alpha)
        return tensors

    return write


def _low_rank(path: str, down: str, up: str, a: torch.Tensor, b: torch.Tensor, *, alpha: bool) -> Tensors:
    if not alpha:
        return {f"{path}.{down}": a, f"{path}.{up}": b}
    return {f"{path}.{down}": a, f"{path}.{up}": b * (a.shape[0] / ALPHA), f"{path}.alpha": torch.tensor(ALPHA)}


def _kohya(change: Mapping[str, LowRank], natives: Mapping[str, str]) -> Tensors:
    tensors = {}
    for layer, (a, b) in change.items():
        path = "lora_unet_" + natives[layer].replace(".", "_")
        tensors |= _low_rank(path, "lora_down.weight", "lora_up.weight", a, b, alpha=True)
    return tensors


def _fused(change: Mapping[str, LowRank], natives: Mapping[str, str]) -> Tensors:
    tensors = {}
    for layer, (a, b) in change.items():
        if layer.endswith((".to_k", ".to_v")):
            continue
        if layer.endswith(".to_q"):
            b = torch.cat([change[layer[:-1] + part].up for part in "qkv"])
            layer = f"{layer[:-1]}qkv"
        path = "lycoris_" + layer.replace(".", "_")
        tensors |= _low_rank(path, "lora_down.weight", "lora_up.weight", a, b, alpha=True)
    return tensors


_AB = ("lora_A.weight", "lora_B.weight")
SCHEMES: dict[str, Callable[[Mapping[str, LowRank], Mapping[str, str]], Tensors]] = {
    "1 diffusers": _dotted("transformer.", *_AB, native=False),
    "2 diffusers, older": _dotted("", "lora.down.weight", "lora.up.weight", native=False),
    "3 native": _dotted("diffusion_model.", *_AB, native=True),
    "4 ComfyUI with diffusers' names": _dotted("diffusion_model.", *_AB, native=False, alpha=True),
    "5 PEFT": _dotted("base_model.model.", "lora_A.default.weight", "lora_B.default.weight", native=True),
    "6 native without a prefix": _dotted("", *_AB, native=True),
    "7 kohya": _kohya,
    "8 fused": _fused,
    "9 Krea's trainer": _dotted("", "lora_A", "lora_B", native=True),
    "10 wrapped": _dotted("module._orig_mod.model.", "lora_down.default", "lora_up.default", native=True),
}


def write_scheme(file: Path, folder: Path, change: Mapping[str, LowRank], scheme: str = "1 diffusers") -> Path:
    natives = native_names(ModelConfig.from_folder(folder).transformer)
    return write(file, SCHEMES[scheme](change, natives))


def add_vectors(file: Path, folder: Path) -> Path:
    """Adds differences of all norms and tables to an adapter's file."""
    vectors = {f"{name}.diff": difference for name, difference in draw_vectors(folder, size=0.1).items()}
    return write(file, load_file(file) | vectors)


def write(
    file: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, object] | None = None,
    header: Mapping[str, str] | None = None,
) -> Path:
    """metadata: PEFT's config in the header; header: whatever else that says."""
    config = {} if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(contiguous, file, {**config, **(header or {})} or None)
    return file


# ---- what an adapter must amount to


def merge_plainly(folder: Path, target: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A copy of a checkpoint with `change(name, tensor)` in place of every tensor of its transformer."""
    shutil.copytree(folder, target)
    (file,) = (target / "transformer").glob("*.safetensors")
    save_file({name: change(name, tensor).contiguous() for name, tensor in load_file(file).items()}, file)
    return target


def normed(weight: torch.Tensor, magnitude: torch.Tensor, dimension: int) -> torch.Tensor:
    """The weight with the norms that `magnitude` says, taken along the dimension."""
    return weight * (magnitude / weight.norm(dim=dimension, keepdim=True))


def divisor_near_root(length: int) -> int:
    return max(d for d in range(1, math.isqrt(length) + 1) if length % d == 0)
