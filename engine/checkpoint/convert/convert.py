"""Writes a checkpoint in another layout, tensor by tensor: what `krea2 convert` does."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert.config_json import config_files
from engine.checkpoint.convert.quantize import Encoded, encode, header_metadata
from engine.checkpoint.convert.writers import GGUF_TYPES, describe_others, safetensors_writer, write_gguf, written_whole
from engine.checkpoint.files.mapped_file import DTYPES
from engine.checkpoint.files.stored import FLOAT_BYTES, StoredTensor, whole
from engine.checkpoint.layouts.component import Component
from engine.checkpoint.layouts.names import transformer_to_native, vae_to_wan
from engine.checkpoint.layouts.presharded import FULL_PRECISION, component_file
from engine.checkpoint.layouts.tensors import sources_by_parameter
from engine.checkpoint.load import LoadOptions, read_parameter
from engine.checkpoint.merged_loras import merged_loras_entry
from engine.checkpoint.quantized.metadata import FLOAT8_E4M3, INT8, MXFP8, NVFP4
from engine.checkpoint.tokenizer_files import find_tokenizer
from engine.checkpoint.variant import variant_entry
from engine.errors import ArgumentError, CheckpointError

COMPONENTS = ("transformer", "text_encoder", "vae")
LAYOUTS = ("diffusers", "native", "gguf", "sharded")
FLOATS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
QUANTIZED = {"fp8": FLOAT8_E4M3, "int8-convrot": INT8, "mxfp8": MXFP8, "nvfp4": NVFP4}
# What weights may be written as, by layout; "keep" leaves floats as they are and makes bfloat16 of anything else, but
# sharded what a rank keeps: 8 bits, norms and tables in float32, the rest in bfloat16.
WEIGHTS: dict[str, tuple[str, ...]] = {
    "diffusers": ("keep", *FLOATS),
    "native": ("keep", *FLOATS, *QUANTIZED),
    "gguf": ("q8_0", *(name.lower() for name in GGUF_TYPES if name != "Q8_0")),
    "sharded": ("keep", *FLOATS, "fp8", "int8"),
}
_GGUF_FLOATS = ("bf16", "f16", "f32")
# Of the layout diffusers.
_FILES = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
_TEXT_ENCODER_PREFIX = "language_model."  # of Qwen3VLModel's language part, which the written configs name
_MOST_PARTS = 3  # of a weight in a native file: itself and its scales
_GROUPS = (256, 64, 16)  # columns that ConvRot rotates together, the largest first
_LONGEST_PREFIX = 100  # characters

Report = Callable[[], None]


def quantization_of(layout: str, weights: str) -> str:
    """Return what `EngineConfig.quantization` calls the most like what becomes of weights: "none" where all will be
    floats, "auto" where those in 8 bits stay so, otherwise "fp8" or "int8"."""
    if weights in ("keep", *FLOATS, *_GGUF_FLOATS):
        return "auto" if layout == "sharded" and weights == "keep" else "none"
    return "int8" if weights == "int8" else "fp8"


def convert(
    checkpoint: CheckpointFiles,
    output: Path,
    *,
    layout: str,
    weights: str,
    component: str = "transformer",
    prefix: str = "",
    tp: int = 1,
    merged: Sequence[Mapping[str, Any]] = (),
    report: Report = lambda: None,
) -> list[str]:
    """Write `checkpoint` to `output`, a folder for the layouts diffusers and sharded, otherwise a file of a component.

    layout: of `LAYOUTS`. "native" are the names of the official single files, for the text encoder ComfyUI's and for
    the VAE Wan's. weights: of `WEIGHTS[layout]`. component: for a single file. prefix: of every name in a native file.
    tp: ranks, for "sharded". merged: LoRAs that the transformer of `checkpoint` has in it, as `merged_loras_entry` has
    them, which its file will tell. report: is called for every tensor that is done. Returns lines about what in the
    output is not what was asked for. Raises `ArgumentError` for options that exclude each other, `CheckpointError` for
    what cannot be read or written, `LoraError` for a LoRA that makes weights overflow; an output that is not whole is
    removed.
    """
    if checkpoint.split_for is not None:
        allowed = "a whole checkpoint, not one that has been split for ranks, of which each has a part"
        raise ArgumentError.of("model", allowed, str(checkpoint.components["transformer"].file.path))
    if len(prefix) > _LONGEST_PREFIX or not prefix.isprintable():
        raise ArgumentError.of("prefix", f"at most {_LONGEST_PREFIX} printable characters", prefix)
    for name, value, known in (("layout", layout, LAYOUTS), ("component", component, COMPONENTS)):
        if value not in known:
            raise ArgumentError.of(name, f"one of {', '.join(known)}", value)
    if weights not in WEIGHTS[layout]:
        raise ArgumentError.of("weights", f"one of {', '.join(WEIGHTS[layout])} for the layout {layout}", weights)
    if os.path.lexists(output):
        raise ArgumentError.of("output", "a path that does not exist yet", str(output))
    notes: dict[str, dict[str, str]] = {name: {} for name in COMPONENTS}
    notes["transformer"] = merged_loras_entry(checkpoint.components["transformer"].file.metadata, merged)
    if layout in ("native", "gguf") and not checkpoint.config.variant_is_assumed:  # a folder has it in its json files
        notes["transformer"] |= variant_entry(checkpoint.config.is_distilled)
    if layout == "native":
        _write_native(checkpoint.components[component], component, output, weights, prefix, notes[component], report)
    elif layout == "gguf":
        if component != "transformer":
            raise ArgumentError.of("component", "transformer for the layout gguf", component)
        return _write_gguf(checkpoint.components["transformer"], output, weights.upper(), notes["transformer"], report)
    else:
        with written_whole(output) as folder:
            folder.mkdir(parents=True)
            _write_small_files(checkpoint, folder)
            if layout == "diffusers":
                for name, file in _FILES.items():
                    prefix = _TEXT_ENCODER_PREFIX if name == "text_encoder" else ""
                    _write_plain(checkpoint.components[name], folder / file, weights, prefix, notes[name], report)
            else:
                _write_shards(checkpoint, folder, weights, tp, notes, report)
    return []


def count_tensors(checkpoint: CheckpointFiles, layout: str, component: str, tp: int) -> int:
    """Count how often `convert` will report."""
    if layout in ("native", "gguf"):
        return len(checkpoint.components[component].tensors)
    if layout == "diffusers":
        return sum(len(each.tensors) for each in checkpoint.components.values())
    counts = {name: len(sources_by_parameter(checkpoint.sources_in_files_of(name))) for name in COMPONENTS}
    return tp * (counts["transformer"] + counts["text_encoder"]) + counts["vae"]


# ---- the layouts


def _write_plain(
    component: Component, file: Path, weights: str, prefix: str, notes: Mapping[str, str], report: Report
) -> None:
    with safetensors_writer(file, len(component.tensors)) as writer:
        writer.metadata |= {"format": "pt", **notes}
        for name, tensor in component.tensors.items():
            writer.add(prefix + name, _as_float(tensor, weights))
            report()


def _write_native(
    component: Component, kind: str, file: Path, weights: str, prefix: str, notes: Mapping[str, str], report: Report
) -> None:
    names = _native_names(component, kind)
    metadata: dict[str, dict[str, Any]] = {}
    with safetensors_writer(file, _MOST_PARTS * len(names)) as writer:
        for name, tensor in component.tensors.items():
            theirs = prefix + names[name]
            if weights in QUANTIZED and _is_quantized(kind, name, tensor):
                layer = theirs.removesuffix(".weight")
                parts, metadata[layer] = _quantize(tensor, layer, QUANTIZED[weights])
                for part, value in parts.items():
                    writer.add(part, value)
            else:
                writer.add(theirs, _as_float(tensor, weights).reshape(_native_shape(name, tensor)))
            report()
        writer.metadata |= notes
        if metadata:
            writer.metadata |= header_metadata(metadata)


def _write_gguf(component: Component, file: Path, qtype: str, notes: Mapping[str, str], report: Report) -> list[str]:
    ours = {native: name for name, native in _native_names(component, "transformer").items()}

    def read(native: str) -> torch.Tensor:
        report()
        return _whole(component.tensors[ours[native]]).reshape(shapes[native])

    shapes = {native: _native_shape(name, component.tensors[name]) for native, name in ours.items()}
    tables = {native for native, name in ours.items() if is_table(name)}  # which ranks hold in float32 as well
    write_gguf(file, shapes, qtype, read, notes, float32=tables)
    others = describe_others(shapes, qtype, tables)
    return [] if others is None else [others]


def _write_shards(
    checkpoint: CheckpointFiles,
    folder: Path,
    weights: str,
    tp: int,
    notes: Mapping[str, Mapping[str, str]],
    report: Report,
) -> None:
    checkpoint.config.check_parallel(tp)
    quantization = quantization_of("sharded", weights)
    options = LoadOptions(torch.device("cpu"), FLOATS.get(weights, torch.bfloat16), quantization)
    for rank in range(tp):
        for component in COMPONENTS:
            if component == "vae" and rank > 0:
                continue
            file = component_file(folder, tp, rank, component)
            file.parent.mkdir(parents=True, exist_ok=True)
            by_parameter = sources_by_parameter(checkpoint.sources_in_files_of(component))
            full_precision = []
            with safetensors_writer(file, 2 * len(by_parameter)) as writer:
                for name, together in by_parameter.items():
                    parameter = read_parameter(together, checkpoint, component, rank, tp, options)
                    writer.add(name, parameter.values)
                    if parameter.scales is not None:
                        writer.add(f"{name}_scale", parameter.scales)
                    if any(checkpoint.stored(component, source).full_precision for source in together):
                        full_precision.append(name)
                    report()
                writer.metadata |= {FULL_PRECISION: json.dumps(full_precision), **notes[component]}


# ---- a tensor


def is_table(name: str) -> bool:
    """Whether a tensor of the transformer is a modulation table: these are small, and floats in every file."""
    return name.endswith(".scale_shift_table")


def _whole(tensor: StoredTensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """All values, in a dtype if one is given. Raises `LoraError` where a LoRA made them too large for it."""
    values = tensor.read(whole(tensor.shape)).to(dtype)
    if not all(map(math.isfinite, values.aminmax())) and (error := tensor.not_finite(whole(tensor.shape))) is not None:
        raise error
    return values


def _as_float(tensor: StoredTensor, weights: str) -> torch.Tensor:
    own = DTYPES[tensor.format].torch if tensor.format in FLOAT_BYTES else "bfloat16"
    return _whole(tensor, FLOATS.get(weights, getattr(torch, own)))


def _is_quantized(kind: str, name: str, tensor: StoredTensor) -> bool:
    """The matrices of the blocks and of text fusion, as in ComfyUI's files, or of the text encoder's layers."""
    inside = {"transformer": "blocks.", "text_encoder": "layers."}.get(kind)
    return inside is not None and inside in name and name.endswith(".weight") and len(tensor.shape) == 2


def _quantize(tensor: StoredTensor, layer: str, format: str) -> Encoded:
    if format == FLOAT8_E4M3 and tensor.weight_format == "fp8":  # what is fp8 stays so, bit for bit
        values, scales = tensor.read_eight_bit(whole(tensor.shape))
        if bool((scales == scales[0]).all()):
            full_precision = {"full_precision_matrix_mult": True} if tensor.full_precision else {}
            parts = {f"{layer}.weight": values, f"{layer}.weight_scale": scales[0, 0].clone()}
            return Encoded(parts, {"format": format, **full_precision})
    group = next((group for group in _GROUPS if tensor.shape[1] % group == 0), 1)
    values = _whole(tensor)
    if not bool(values.isfinite().all()):  # quantised, they would be numbers
        raise CheckpointError.of(tensor.file, "holds values that are not finite", name=tensor.name)
    return encode(format, layer, values, group=group, full_precision=tensor.full_precision)


def _native_names(component: Component, kind: str) -> dict[str, str]:
    """Of each tensor, the name that it has in single files."""
    if kind == "text_encoder":
        return {name: f"model.{name}" for name in component.tensors}
    if kind == "transformer":
        return {name: transformer_to_native(name) or name for name in component.tensors}
    # a level of the encoder has two residual blocks in the real VAE; smaller ones have other numbers
    blocks = [int(name.split(".")[4]) for name in component.tensors if name.startswith("decoder.up_blocks.0.resnets.")]
    return {name: vae_to_wan(name, max(blocks)) or name for name in component.tensors}


def _native_shape(name: str, tensor: StoredTensor) -> tuple[int, ...]:
    """Modulation is flat in the blocks of native files."""
    return (math.prod(tensor.shape),) if "blocks." in name and is_table(name) else tuple(tensor.shape)


def _write_small_files(checkpoint: CheckpointFiles, folder: Path) -> None:
    """Configs, and the tokenizer."""
    for name, content in config_files(checkpoint.config).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "tokenizer").mkdir()
    for name, file in find_tokenizer(checkpoint.tokenizer).by_name().items():
        shutil.copyfile(file, folder / "tokenizer" / name)
