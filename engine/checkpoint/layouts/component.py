"""A component in whatever form it comes: which files hold it, and what its tensors are called here.

Nothing goes by a file's name: tensors' names, shapes, dtypes and marks decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.files.open import open_component
from engine.checkpoint.files.sharded_file import ShardedFile
from engine.checkpoint.files.stored import Reshaped, StoredTensor, TensorFile
from engine.checkpoint.layouts.encodings import stored_tensors
from engine.checkpoint.layouts.names import (
    ALL_IN_ONE,
    DEAD_TENSORS,
    LLAMA_MARK,
    NATIVE_TRANSFORMER_MARK,
    TEXT_ENCODER_MARK,
    TRANSFORMER_MARK,
    VAE_MARK,
    WAN_MARK,
    shared_prefix,
    text_encoder_from_llama,
    text_encoder_to_llama,
    transformer_from_native,
    transformer_to_native,
    vae_from_wan,
    vae_to_wan,
)
from engine.errors import CheckpointError

_Named = dict[str, StoredTensor]


@dataclass(frozen=True)
class Component:
    """An open component.

    location: the file, or the index of its shards. tensors: by the names of `tensors.Source`; those that have none
    keep their own. layout: for people. in_file: what the file would call a tensor that it lacks.
    """

    location: Path
    tensors: Mapping[str, StoredTensor]
    layout: str
    in_file: Callable[[str], str]
    file: TensorFile


def open_transformer(path: Path) -> Component:
    """The DiT with its text fusion, in diffusers' names or the official files', under any prefix.

    path: a component's folder, a repository's in the diffusers layout, a safetensors or GGUF file, or an index of
    shards. Raises `CheckpointError` if it is damaged or no Krea 2.
    """
    file = open_component(path, "transformer", "diffusion_pytorch_model")
    stored = _part(file, "transformer")
    prefix = shared_prefix(stored)
    named = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
    for name in DEAD_TENSORS:
        named.pop(name, None)

    native = sorted(name for name in named if transformer_from_native(name))
    theirs = sorted(name for name in named if transformer_to_native(name))
    if native and theirs:
        raise CheckpointError.of(
            file.path, "mixes two namings", expected=f"names like {native[0]} alone", found=f"{theirs[0]} too"
        )
    if not (native or theirs) or not {NATIVE_TRANSFORMER_MARK, TRANSFORMER_MARK} & named.keys():
        mark = TRANSFORMER_MARK if theirs else NATIVE_TRANSFORMER_MARK
        raise CheckpointError.of(file.path, "is no Krea 2 transformer: a tensor is missing", expected=prefix + mark)
    if not native:
        return _component(file, named, "diffusers names", prefix)
    tensors = {transformer_from_native(name) or name: tensor for name, tensor in named.items()}
    return _component(file, tensors, "native names", prefix, lambda name: transformer_to_native(name) or name)


def open_text_encoder(path: Path) -> Component:
    """The language model of Qwen3-VL, in transformers' names under any prefix, or in llama.cpp's. See
    `open_transformer` for path; what belongs to vision is left out."""
    file = open_component(path, "text_encoder", "model")
    stored = _part(file, "text_encoder")
    llama = LLAMA_MARK in stored
    if llama:
        tensors = {text_encoder_from_llama(name) or name: tensor for name, tensor in stored.items()}
        tensors.pop("output.weight", None)
        return _component(file, tensors, "llama.cpp names", "", lambda name: text_encoder_to_llama(name) or name)
    prefix = _prefix(file, stored, TEXT_ENCODER_MARK, "is not the text encoder's")
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in stored.items()
        if "visual." not in name and not name.endswith("lm_head.weight")
    }
    return _component(file, tensors, "transformers names", prefix)


def open_vae(path: Path) -> Component:
    """The Qwen-Image VAE, in diffusers' names or Wan 2.1's. See `open_transformer` for path."""
    file = open_component(path, "vae", "diffusion_pytorch_model")
    stored = _part(file, "vae")
    is_wan = any(name.endswith(WAN_MARK) for name in stored)
    prefix = _prefix(file, stored, WAN_MARK if is_wan else VAE_MARK, "is not the Qwen-Image VAE")
    named = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
    first = named.get("decoder.conv1.weight" if is_wan else VAE_MARK)
    if first is not None and len(first.shape) == 5 and first.shape[1] == _WAN_2_2_CHANNELS:
        raise CheckpointError.of(
            first.file,
            "belongs to a Wan 2.2 VAE, which Krea 2 was not trained with",
            name=first.name,
            expected="the Qwen-Image VAE",
            found=f"{_WAN_2_2_CHANNELS} channels",
        )
    if not is_wan:
        return _component(file, named, "diffusers names", prefix)
    res_blocks = _res_blocks(named)
    tensors = {vae_from_wan(name, res_blocks) or name: tensor for name, tensor in named.items()}
    return _component(file, tensors, "Wan names", prefix, lambda name: vae_to_wan(name, res_blocks) or name)


_WAN_2_2_CHANNELS = 48
_TABLE_ROWS = {"final_layer.scale_shift_table": 2}  # of the others: 6


def _part(file: TensorFile, component: str) -> _Named:
    """The tensors of a file, or, if it holds several components, those of this one."""
    stored = stored_tensors(file)
    if isinstance(file, ShardedFile):
        for tensor in stored.values():
            tensor.file = file.header_file(tensor.name)
    own, *others = sorted(ALL_IN_ONE, key=lambda other: other != component)
    if any(name.startswith(tuple(ALL_IN_ONE[other] for other in others)) for name in stored):
        stored = {name: tensor for name, tensor in stored.items() if name.startswith(ALL_IN_ONE[own])}
        if not stored:
            raise CheckpointError.of(file.path, f"holds no {component}", expected=f"names like {ALL_IN_ONE[own]}…")
    return stored


def _prefix(file: TensorFile, names: Iterable[str], mark: str, problem: str) -> str:
    """What precedes the one name that ends with `mark`."""
    found = [name for name in names if name == mark or name.endswith(f".{mark}")]
    if len(found) != 1:
        raise CheckpointError.of(
            file.path, problem, expected=f"one tensor whose name ends with {mark}", found=f"{len(found)} of them"
        )
    return found[0].removesuffix(mark)


def _component(
    file: TensorFile,
    tensors: Mapping[str, StoredTensor],
    naming: str,
    prefix: str,
    translate: Callable[[str], str] = str,
) -> Component:
    layout = f"{naming} after {prefix}" if prefix else naming
    shaped = {name: _as_table(name, tensor) for name, tensor in tensors.items()}
    return Component(file.path, shaped, layout, lambda name: prefix + translate(name), file)


def _as_table(name: str, tensor: StoredTensor) -> StoredTensor:
    """Modulation comes flat in some files: row after row."""
    if not name.endswith("scale_shift_table") or len(tensor.shape) != 1:
        return tensor
    rows = _TABLE_ROWS.get(name, 6)
    length = math.prod(tensor.shape)
    return tensor if length % rows else Reshaped(tensor, (rows, length // rows))


def _res_blocks(names: Iterable[str]) -> int:
    """Residual blocks of a level of a VAE with Wan's names: the decoder has one more before its first upsampler."""
    places = [
        int(number)
        for name in names
        if name.startswith("decoder.upsamples.") and name.endswith(".resample.1.weight")
        if (number := name.split(".")[2]).isdecimal()
    ]
    return max(1, min(places) - 1) if places else 1
