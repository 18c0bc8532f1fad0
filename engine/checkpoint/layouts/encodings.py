"""Which tensors a file means, whatever it stores them as: weights with their scales and marks, told apart by names,
dtypes and marks, never by the file's name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from engine.checkpoint.files.stored import FLOAT_BYTES, INT8_GROUP, Bounds, PlainTensor, StoredTensor, TensorFile
from engine.checkpoint.layouts.names import DEAD_TENSORS
from engine.checkpoint.quantized.block_scaled import Mxfp8Matrix, Nvfp4Matrix
from engine.checkpoint.quantized.metadata import FLOAT8_E4M3, FLOAT8_E5M2, INT8, MXFP8, NVFP4, W4A4, Mark, read_marks
from engine.checkpoint.quantized.scaled import (
    FLOAT8_FORMATS,
    E5m2Matrix,
    Fp8Cast,
    Fp8Matrix,
    Int8Matrix,
    Layer,
    UnreadableTensor,
    W4A4Matrix,
)
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# What the last part of a companion's name means. Those that no format here knows are listed too: a weight must not be
# read without them.
_COMPANIONS = {
    "comfy_quant": "comfy_quant",
    "weight_scale": "weight_scale",
    "scale_weight": "weight_scale",  # ComfyUI's fp8 files of 2024 and 2025
    "input_scale": "input_scale",
    "scale_input": "input_scale",
    "weight_scale_2": "weight_scale_2",
    "pre_quant_scale": "pre_quant_scale",
    "weight_scale_inv": "weight_scale_inv",
    "weight_zero_point": "weight_zero_point",
    "weight_s_rel": "weight_s_rel",
    "weight_s_channel": "weight_s_channel",
    "weight_codebook": "weight_codebook",
    "weight_correction": "weight_correction",
}
_OLD_FP8_MARKER = "scaled_fp8"

_CLASSES: dict[str, Callable[[Layer], StoredTensor]] = {
    FLOAT8_E4M3: Fp8Matrix,
    FLOAT8_E5M2: E5m2Matrix,
    INT8: Int8Matrix,
    W4A4: W4A4Matrix,
    MXFP8: Mxfp8Matrix,
    NVFP4: Nvfp4Matrix,
}


@runtime_checkable
class GgmlFile(TensorFile, Protocol):
    """A file of ggml blocks, whose `read` dequantises."""

    def bytes_of(self, name: str, bounds: Bounds) -> int:
        """Bytes of the file that reading a slice takes."""
        ...

    def read_q8_0(self, name: str, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        """Values (rows, columns) int8 and scales (rows, columns / 32) float16, of a Q8_0 tensor."""
        ...


def stored_tensors(file: TensorFile) -> dict[str, StoredTensor]:
    """Every tensor that the file means, by its name in the file; scales, marks and markers are not among them.

    Raises `CheckpointError` for marks that are damaged or contradict each other or the tensors, for integer weights
    without a mark, and for scales without a weight, except those of the two dead matrices `last.down` and `last.up`,
    which vanish. Reads headers, and marks that are tensors.
    """
    if isinstance(file, GgmlFile):
        return {name: _ggml_tensor(file, name) for name in file.headers}
    names, companions, full_precision = _sort_out(file)
    layers = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    for layer, found in companions.items():
        if layer not in layers and not f".{layer}.weight".endswith(tuple(f".{dead}" for dead in DEAD_TENSORS)):
            raise CheckpointError.of(
                file.path, f"belongs to {layer}.weight, which is missing", name=min(found.values())
            )
    marks = read_marks(file, layers)
    default = file.metadata.get("quant_format")
    stored: dict[str, StoredTensor] = {}
    for name in names:
        layer = name.removesuffix(".weight")
        found = companions.get(layer, {}) if name.endswith(".weight") else {}
        mark = marks.get(layer) if name.endswith(".weight") else None
        if mark is None and default in _CLASSES and "weight_scale" in found:
            mark = Mark(default)
        stored[name] = _stored(file, name, found, mark, full_precision=name.startswith(full_precision))
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
    file: TensorFile, name: str, companions: dict[str, str], mark: Mark | None, *, full_precision: bool
) -> StoredTensor:
    header = file.headers[name]
    if mark is None:
        if header.dtype in FLOAT8_FORMATS:
            if companions.keys() <= {"input_scale"}:
                return Fp8Cast(file, name, full_precision=full_precision)
            mark = Mark(FLOAT8_FORMATS[header.dtype], full_precision=full_precision)
        elif header.dtype in ("I8", "U8") and name.endswith(".weight"):
            raise CheckpointError.of(
                file.path,
                "is quantised, but neither the header nor a comfy_quant tensor says how",
                name=name,
                found=f"{header.dtype} {header.shape}",
            )
        elif header.dtype not in FLOAT_BYTES:
            return UnreadableTensor(file, name)
        else:
            for kind, companion in companions.items():
                if kind != "input_scale":
                    raise CheckpointError.of(file.path, f"is for a quantised weight, and {name} is not", name=companion)
            return PlainTensor(file, name)
    if mark.format not in _CLASSES:
        raise CheckpointError.of(
            file.path,
            "has a format that cannot be loaded; use another download of this model",
            name=name,
            expected=f"one of {', '.join(_CLASSES)}",
            found=mark.format,
        )
    return _CLASSES[mark.format](Layer(file, name, companions, mark))


def _ggml_tensor(file: GgmlFile, name: str) -> StoredTensor:
    # ggml writes its plain floats under the names that safetensors has for them
    return PlainTensor(file, name) if file.headers[name].dtype in FLOAT_BYTES else GgmlTensor(file, name)


class GgmlTensor(StoredTensor):
    """Quantised blocks of a GGUF file. A matrix is held as int8: Q8_0 as it is, other types requantised."""

    def __init__(self, file: GgmlFile, name: str) -> None:
        header = file.headers[name]
        self.file, self.name, self.shape, self.format = file.path, name, header.shape, header.dtype
        self.weight_format = "int8" if len(self.shape) == 2 and self.shape[1] % INT8_GROUP == 0 else "float"
        self._file = file

    def size(self, bounds: Bounds) -> int:
        return self._file.bytes_of(self.name, bounds)

    def read(self, bounds: Bounds) -> torch.Tensor:
        return self._file.read(self.name, bounds)

    def read_eight_bit(self, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        if self.format == "Q8_0":
            return self._file.read_q8_0(self.name, bounds)
        from engine.kernels.int8 import quantize_groups

        values = self._file.read(self.name, bounds)
        if not bool(values.isfinite().all()):  # quantised, an infinity would be a number
            raise CheckpointError.of(self.file, "holds values that are not finite", name=self.name)
        return quantize_groups(values)
