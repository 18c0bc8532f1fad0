"""A component in whatever form it comes: which files hold it, and what its tensors are called here.

Nothing goes by a file's name: tensors' names, shapes, dtypes and quantisation metadata decide.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from engine.checkpoint.files.open import open_component
from engine.checkpoint.files.safetensors_file import ShardedFile
from engine.checkpoint.files.stored import Reshaped, StoredTensor, TensorFile
from engine.checkpoint.layouts import names
from engine.checkpoint.layouts.belonging import Ambiguous, belonging, called, held
from engine.checkpoint.layouts.encodings import stored_tensors
from engine.checkpoint.layouts.other_models import language_model, other_model
from engine.errors import CheckpointError, printable, shortened

_NOT_HELD = {
    "text_encoder": ("is not the text encoder's", names.TEXT_ENCODER_SIGNATURE),
    "vae": ("is not the Qwen-Image VAE", names.VAE_SIGNATURE),
}
_LONGEST_PREFIX = 120  # characters of one that is told; what trainers stack is shorter
_WAN_2_2_CHANNELS = 48
_QWEN3_NORMS = ("q_norm.weight", "attn_q_norm.weight")  # which Qwen2.5-VL and others do not have
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


class _After(NamedTuple):
    prefix: str
    said: str


def open_transformer(path: Path) -> Component:
    """Open the DiT with its text fusion, in diffusers' names or the official files', under any prefix.

    path: a component's folder, a repository's in the diffusers layout, a safetensors or GGUF file, or an index of
    shards. Raises `CheckpointError` if it is damaged or no Krea 2.
    """
    file, stored, after = _open(path, "transformer", "diffusion_pytorch_model")
    named = {name: tensor for name, tensor in stored.items() if name not in names.DEAD_TENSORS}

    native = sorted(name for name in named if names.transformer_from_native(name))
    theirs = sorted(name for name in named if names.transformer_to_native(name))
    if native and theirs:
        expected, found = f"names like {native[0]} alone", f"{theirs[0]} too"
        raise CheckpointError.of(file.path, "mixes two namings", expected=expected, found=found)
    if theirs:
        return _component(file, named, "diffusers names", after)
    return _component(file, named, "native names", after, names.transformer_from_native, names.transformer_to_native)


def open_text_encoder(path: Path) -> Component:
    """Open the language model of Qwen3-VL, in transformers' names under any prefix, or in llama.cpp's. See
    `open_transformer` for path and errors; vision and the output head are left out."""
    file, stored, after = _open(path, "text_encoder", "model")
    if not any(name.endswith(_QWEN3_NORMS) for name in stored):
        problem = f"is not Krea 2's text encoder, Qwen3-VL-4B-Instruct: it is {language_model(file.metadata)}"
        raise CheckpointError.of(file.path, problem, expected=f"tensors whose names end with {_QWEN3_NORMS[0]}")
    if names.LLAMA_SIGNATURE in stored:
        stored.pop("output.weight", None)
        return _component(
            file, stored, "llama.cpp names", after, names.text_encoder_from_llama, names.text_encoder_to_llama
        )
    tensors = {
        name: tensor for name, tensor in stored.items() if "visual." not in name and not name.endswith("lm_head.weight")
    }
    return _component(file, tensors, "transformers names", after)


def open_vae(path: Path) -> Component:
    """Open the Qwen-Image VAE, in diffusers' names or Wan 2.1's. See `open_transformer` for path and errors."""
    file, named, after = _open(path, "vae", "diffusion_pytorch_model")
    is_wan = names.WAN_SIGNATURE in named
    first = named.get("decoder.conv1.weight" if is_wan else names.VAE_SIGNATURE)
    if first is not None and len(first.shape) == 5 and first.shape[1] == _WAN_2_2_CHANNELS:
        problem = "belongs to a Wan 2.2 VAE, which Krea 2 was not trained with"
        expected, found = "the Qwen-Image VAE", f"{_WAN_2_2_CHANNELS} channels"
        raise CheckpointError.of(first.file, problem, name=first.name, expected=expected, found=found)
    if not is_wan:
        return _component(file, named, "diffusers names", after)
    from_wan, to_wan = (partial(way, res_blocks=_res_blocks(named)) for way in (names.vae_from_wan, names.vae_to_wan))
    return _component(file, named, "Wan names", after, from_wan, to_wan)


def _open(path: Path, component: str, stem: str) -> tuple[TensorFile, dict[str, StoredTensor], _After]:
    """The file, its tensors of this component without prefix and wrappers, and what else is to be said of their
    names."""
    file = open_component(path, component, stem)
    stored = stored_tensors(file)
    if isinstance(file, ShardedFile):
        for tensor in stored.values():
            tensor.file = file.header_file(tensor.name)
    try:
        own = belonging(stored, component)
    except Ambiguous as error:
        problem = f"holds {called(component)} more than once, or two tensors of one name"
        raise CheckpointError.of(file.path, problem, expected="one", found=" and ".join(error.which)) from None
    if own is None:
        raise _not_held(file, stored, component)
    if names.is_lora(own.names):
        raise CheckpointError.of(
            file.path,
            "holds a LoRA beside the weights that it changes; merge it into them first (PEFT's merge_and_unload), or "
            "give it as a file of its own, as lora",
        )
    after = f" after {shortened(printable(own.prefix), _LONGEST_PREFIX)}" if own.prefix else ""
    if own.training:
        after += f", without {own.training} tensor{'' if own.training == 1 else 's'} of its training"
    return file, {short: stored[name] for short, name in own.names.items()}, _After(own.prefix, after)


def _not_held(file: TensorFile, stored: Collection[str], component: str) -> CheckpointError:
    """The error of a file that does not have the component: what it is, or what it lacks."""
    others = [f"{called(other)} (give it as {other})" for other in held(stored)]
    if others:
        problem = f"holds no {component.replace('_', ' ')}, only {' and '.join(others)}"
        return CheckpointError.of(file.path, problem)
    if names.is_lora(stored):
        return CheckpointError.of(file.path, "is a LoRA, which goes with a model: give it as lora, not as model")
    if (other := other_model(stored, file.metadata)) is not None:
        problem = f"is no Krea 2 {component.replace('_', ' ')}: it is {other}"
        return CheckpointError.of(file.path, problem)
    if component != "transformer":
        problem, signature = _NOT_HELD[component]
        expected = f"one tensor whose name ends with {signature}"
        return CheckpointError.of(file.path, problem, expected=expected, found="0 of them")
    theirs = any(part in name for name in stored for part in ("transformer_blocks.", "text_fusion."))
    expected = names.TRANSFORMER_SIGNATURE if theirs else names.NATIVE_TRANSFORMER_SIGNATURE
    return CheckpointError.of(file.path, "is no Krea 2 transformer: a tensor is missing", expected=expected)


def _component(
    file: TensorFile,
    stored: Mapping[str, StoredTensor],
    naming: str,
    after: _After,
    to_ours: Callable[[str], str | None] = str,
    to_theirs: Callable[[str], str | None] = str,
) -> Component:
    named = {to_ours(name) or name: tensor for name, tensor in stored.items()}
    tensors = {name: _as_table(name, tensor) for name, tensor in named.items()}
    return Component(file, tensors, naming + after.said, lambda name: after.prefix + (to_theirs(name) or name))


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
