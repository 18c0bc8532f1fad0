"""A component in whatever form it comes: which files hold it, and what its tensors are called here.

Nothing goes by a file's name: tensors' names, shapes, dtypes and quantisation metadata decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.checkpoint.files.open import open_component
from engine.checkpoint.files.safetensors_file import ShardedFile
from engine.checkpoint.files.stored import Reshaped, StoredTensor, TensorFile
from engine.checkpoint.layouts import names
from engine.checkpoint.layouts.encodings import stored_tensors
from engine.errors import CheckpointError

_WAN_2_2_CHANNELS = 48
_TABLE_ROWS = {"final_layer.scale_shift_table": 2}  # of the others: 6


@dataclass(frozen=True)
class Component:
    """An open component.

    file: one, or all shards. tensors: by the names of `tensors.Source`; a tensor that has none keeps its own.
    layout: its naming, for people. in_file: what the file would call a tensor that it lacks.
    """

    file: TensorFile
    tensors: Mapping[str, StoredTensor]
    layout: str
    in_file: Callable[[str], str]


def open_transformer(path: Path) -> Component:
    """Open the DiT with its text fusion, in diffusers' names or the official files', under any prefix.

    path: a component's folder, a repository's in the diffusers layout, a safetensors or GGUF file, or an index of
    shards. Raises `CheckpointError` if it is damaged or no Krea 2.
    """
    file, stored = _open(path, "transformer", "diffusion_pytorch_model")
    prefix = names.shared_prefix(stored)
    named = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
    for name in names.DEAD_TENSORS:
        named.pop(name, None)

    native = sorted(name for name in named if names.transformer_from_native(name))
    theirs = sorted(name for name in named if names.transformer_to_native(name))
    if native and theirs:
        expected, found = f"names like {native[0]} alone", f"{theirs[0]} too"
        raise CheckpointError.of(file.path, "mixes two namings", expected=expected, found=found)
    signature = names.TRANSFORMER_SIGNATURE if theirs else names.NATIVE_TRANSFORMER_SIGNATURE
    if signature not in named and names.is_lora(stored):
        raise CheckpointError.of(file.path, "is a LoRA, which goes with a model: give it as lora, not as model")
    if signature not in named:
        problem = "is no Krea 2 transformer: a tensor is missing"
        raise CheckpointError.of(file.path, problem, expected=prefix + signature)
    if theirs:
        return _component(file, named, "diffusers names", prefix)
    return _component(file, named, "native names", prefix, names.transformer_from_native, names.transformer_to_native)


def open_text_encoder(path: Path) -> Component:
    """Open the language model of Qwen3-VL, in transformers' names under any prefix, or in llama.cpp's. See
    `open_transformer` for path and errors; vision and the output head are left out."""
    file, stored = _open(path, "text_encoder", "model")
    if names.LLAMA_SIGNATURE in stored:
        stored.pop("output.weight", None)
        return _component(
            file, stored, "llama.cpp names", "", names.text_encoder_from_llama, names.text_encoder_to_llama
        )
    prefix = _prefix(file, stored, names.TEXT_ENCODER_SIGNATURE, "is not the text encoder's")
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in stored.items()
        if "visual." not in name and not name.endswith("lm_head.weight")
    }
    return _component(file, tensors, "transformers names", prefix)


def open_vae(path: Path) -> Component:
    """Open the Qwen-Image VAE, in diffusers' names or Wan 2.1's. See `open_transformer` for path and errors."""
    file, stored = _open(path, "vae", "diffusion_pytorch_model")
    is_wan = any(name.endswith(names.WAN_SIGNATURE) for name in stored)
    signature = names.WAN_SIGNATURE if is_wan else names.VAE_SIGNATURE
    prefix = _prefix(file, stored, signature, "is not the Qwen-Image VAE")
    named = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
    first = named.get("decoder.conv1.weight" if is_wan else names.VAE_SIGNATURE)
    if first is not None and len(first.shape) == 5 and first.shape[1] == _WAN_2_2_CHANNELS:
        problem = "belongs to a Wan 2.2 VAE, which Krea 2 was not trained with"
        expected, found = "the Qwen-Image VAE", f"{_WAN_2_2_CHANNELS} channels"
        raise CheckpointError.of(first.file, problem, name=first.name, expected=expected, found=found)
    if not is_wan:
        return _component(file, named, "diffusers names", prefix)
    from_wan, to_wan = (partial(way, res_blocks=_res_blocks(named)) for way in (names.vae_from_wan, names.vae_to_wan))
    return _component(file, named, "Wan names", prefix, from_wan, to_wan)


def _open(path: Path, component: str, stem: str) -> tuple[TensorFile, dict[str, StoredTensor]]:
    """The file, and its tensors; of a file that holds several components, those of this one."""
    file = open_component(path, component, stem)
    stored = stored_tensors(file)
    if isinstance(file, ShardedFile):
        for tensor in stored.values():
            tensor.file = file.header_file(tensor.name)
    own = names.ALL_IN_ONE[component]
    if any(name.startswith(prefix) for name in stored for prefix in names.ALL_IN_ONE.values() if prefix != own):
        stored = {name: tensor for name, tensor in stored.items() if name.startswith(own)}
        if not stored:
            raise CheckpointError.of(file.path, f"holds no {component}", expected=f"names like {own}…")
    return file, stored


def _prefix(file: TensorFile, stored: Iterable[str], signature: str, problem: str) -> str:
    """What precedes the one name that ends with `signature`."""
    found = [name for name in stored if name == signature or name.endswith(f".{signature}")]
    if len(found) != 1:
        expected = f"one tensor whose name ends with {signature}"
        raise CheckpointError.of(file.path, problem, expected=expected, found=f"{len(found)} of them")
    return found[0].removesuffix(signature)


def _component(
    file: TensorFile,
    stored: Mapping[str, StoredTensor],
    naming: str,
    prefix: str,
    to_ours: Callable[[str], str | None] = str,
    to_theirs: Callable[[str], str | None] = str,
) -> Component:
    layout = f"{naming} after {prefix}" if prefix else naming
    named = {to_ours(name) or name: tensor for name, tensor in stored.items()}
    tensors = {name: _as_table(name, tensor) for name, tensor in named.items()}
    return Component(file, tensors, layout, lambda name: prefix + (to_theirs(name) or name))


def _as_table(name: str, tensor: StoredTensor) -> StoredTensor:
    """(rows · width,) → (rows, width): modulation comes flat in some files, row after row."""
    rows = _TABLE_ROWS.get(name, 6)
    if not name.endswith("scale_shift_table") or len(tensor.shape) != 1 or tensor.shape[0] % rows:
        return tensor
    return Reshaped(tensor, (rows, tensor.shape[0] // rows))


def _res_blocks(stored: Iterable[str]) -> int:
    """Residual blocks of a level of a VAE with Wan's names: the decoder has one more before its first upsampler."""
    places = [
        int(number)
        for name in stored
        if name.startswith("decoder.upsamples.") and name.endswith(".resample.1.weight")
        if (number := name.split(".")[2]).isascii() and number.isdecimal()
    ]
    return max(1, min(places) - 1) if places else 1
