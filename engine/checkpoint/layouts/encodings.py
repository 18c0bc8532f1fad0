"""Finds the tensors that a file stands for, whatever it stores them as: weights with their scales, told apart by names,
dtypes and quantisation metadata, never by the file's name."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from engine.checkpoint.files.gguf_file import GgufFile
from engine.checkpoint.files.stored import FLOAT_BYTES, INT8_GROUP, Bounds, PlainTensor, StoredTensor, TensorFile
from engine.checkpoint.layouts.names import DEAD_TENSORS
from engine.checkpoint.quantized import metadata, scaled
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# Kinds of companions: what the last part of their name is. Kinds that no format here knows are listed too: a weight
# must not be read without them.
_KINDS = (metadata.BLOB, "weight_scale", "input_scale", "weight_scale_2", "pre_quant_scale", "weight_scale_inv")
_UNKNOWN_KINDS = ("weight_zero_point", "weight_s_rel", "weight_s_channel", "weight_codebook", "weight_correction")
_OLD_KINDS = {"scale_weight": "weight_scale", "scale_input": "input_scale"}  # ComfyUI's fp8 files of 2024 and 2025
_COMPANIONS = {kind: kind for kind in (*_KINDS, *_UNKNOWN_KINDS)} | _OLD_KINDS
_OLD_FP8_MARKER = "scaled_fp8"

_CLASSES: dict[str, type[scaled.QuantizedMatrix]] = {
    metadata.FLOAT8_E4M3: scaled.Fp8Matrix,
    metadata.FLOAT8_E5M2: scaled.E5m2Matrix,
    metadata.INT8: scaled.Int8Matrix,
    metadata.W4A4: scaled.W4A4Matrix,
    metadata.MXFP8: scaled.Mxfp8Matrix,
    metadata.NVFP4: scaled.Nvfp4Matrix,
}


def stored_tensors(file: TensorFile) -> dict[str, StoredTensor]:
    """List every tensor that the file means, by its name in the file, without scales and metadata.

    Raises `CheckpointError` for quantisation metadata that is damaged or contradicts itself or the tensors, for integer
    weights without it, and for scales without a weight, except those of the two dead matrices `last.down` and
    `last.up`, which vanish. Reads headers, and metadata that is in tensors.
    """
    if isinstance(file, GgufFile):
        # ggml writes its plain floats under the names that safetensors has for them
        return {
            name: PlainTensor(file, name) if header.dtype in FLOAT_BYTES else GgmlTensor(file, name)
            for name, header in file.headers.items()
        }
    names, companions, full_precision = _sort_out(file)
    layers = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    for layer, found in companions.items():
        if layer not in layers and not f".{layer}.weight".endswith(tuple(f".{dead}" for dead in DEAD_TENSORS)):
            problem = f"belongs to {layer}.weight, which is missing"
            raise CheckpointError.of(file.path, problem, name=min(found.values()))
    quantized = metadata.read_quantization_metadata(file, layers)
    default = file.metadata.get("quant_format")
    stored: dict[str, StoredTensor] = {}
    for name in names:
        layer = name.removesuffix(".weight")
        found, said = (companions.get(layer, {}), quantized.get(layer)) if layer != name else ({}, None)
        if said is None and default in _CLASSES and "weight_scale" in found:
            said = metadata.QuantizationMetadata(default)
        stored[name] = _stored(file, name, found, said, full_precision=name.startswith(full_precision))
    return stored


def _sort_out(file: TensorFile) -> tuple[list[str], dict[str, dict[str, str]], tuple[str, ...]]:
    """Names that stay, companions by layer and kind, and prefixes under which fp8 layers want full precision."""
    names: list[str] = []
    companions: dict[str, dict[str, str]] = defaultdict(dict)
    full_precision: list[str] = []
    for name, header in file.headers.items():
        layer, _, last = name.rpartition(".")
        kind = _COMPANIONS.get(last)
        if last == _OLD_FP8_MARKER:
            if header.shape == (2,):  # all that the marker says besides the dtype, which the weights have too
                full_precision.append(name.removesuffix(_OLD_FP8_MARKER))
        elif not layer or kind is None:
            names.append(name)
        elif kind in companions[layer]:
            raise CheckpointError.of(file.path, f"means the same as {companions[layer][kind]}", name=name)
        else:
            companions[layer][kind] = name
    return names, companions, tuple(full_precision)


def _stored(
    file: TensorFile,
    name: str,
    companions: dict[str, str],
    said: metadata.QuantizationMetadata | None,
    *,
    full_precision: bool,
) -> StoredTensor:
    shape, dtype = file.headers[name]
    if said is None and dtype in scaled.FLOAT8_FORMATS:
        if companions.keys() <= {"input_scale"}:
            return scaled.Fp8Cast(file, name, full_precision=full_precision)
        said = metadata.QuantizationMetadata(scaled.FLOAT8_FORMATS[dtype], full_precision=full_precision)
    if said is None:
        if dtype in ("I8", "U8") and name.endswith(".weight"):
            problem = "is quantised, but neither the header nor a comfy_quant tensor says how"
            raise CheckpointError.of(file.path, problem, name=name, found=f"{dtype} {shape}")
        for kind, companion in companions.items():
            if kind != "input_scale" and dtype in FLOAT_BYTES:
                raise CheckpointError.of(file.path, f"is for a quantised weight, and {name} is not", name=companion)
        return PlainTensor(file, name)
    if said.format not in _CLASSES:
        problem = "has a format that cannot be loaded; use another download of this model"
        known = f"one of {', '.join(_CLASSES)}"
        raise CheckpointError.of(file.path, problem, name=name, expected=known, found=said.format)
    return _CLASSES[said.format](scaled.Layer(file, name, companions, said))


class GgmlTensor(PlainTensor):
    """Quantised blocks of a GGUF file. A matrix is kept as int8: Q8_0 as it is, other types requantised."""

    _file: GgufFile

    def __init__(self, file: GgufFile, name: str) -> None:
        super().__init__(file, name)
        self.weight_format = "int8" if len(self.shape) == 2 and self.shape[1] % INT8_GROUP == 0 else "float"

    def size(self, bounds: Bounds) -> int:
        return self._file.bytes_of(self.name, bounds)

    def read_eight_bit(self, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        if self.format == "Q8_0":
            return self._file.read_q8_0(self.name, bounds)
        from engine.kernels.int8 import quantize_groups

        values = self._file.read(self.name, bounds)
        if not bool(values.isfinite().all()):  # quantised, an infinity would be a number
            raise CheckpointError.of(self.file, "holds values that are not finite", name=self.name)
        return quantize_groups(values)
