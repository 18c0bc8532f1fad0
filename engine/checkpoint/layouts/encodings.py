"""Finds the tensors that a file stands for, whatever it stores them as: weights with their scales, told apart by names,
dtypes and quantisation metadata, never by the file's name."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from engine.checkpoint.files.gguf_file import GgufFile
from engine.checkpoint.files.gguf_split import SplitGgufFile
from engine.checkpoint.files.stored import FLOAT_BYTES, INT8_GROUP, Bounds, PlainTensor, StoredTensor, TensorFile
from engine.checkpoint.layouts.names import DEAD_TENSORS
from engine.checkpoint.quantized import foreign, metadata, scaled
from engine.checkpoint.quantized.bitsandbytes import BNB_4BIT, BNB_8BIT, FourBitMatrix, LlmInt8Matrix
from engine.checkpoint.quantized.grouped import Fp8Squares, Int8Squares, W4A8Matrix, square_of
from engine.checkpoint.quantized.tiled import Mxfp8Matrix, Nvfp4Matrix
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# Kinds of companions: what the last part of their name is. Kinds that no format here knows are listed too: a weight
# must not be read without them.
_KINDS = (metadata.BLOB, "weight_scale", "input_scale", "weight_scale_2", "pre_quant_scale", "weight_scale_inv")
_W4A8_KINDS = W4A8Matrix.kinds
_UNKNOWN_KINDS = (
    *("weight_zero_point", "output_scale", "int4_awq_scales"),
    *("int4_group_scale_ratio", "int4_stabilizer_l1", "int4_stabilizer_l2"),
)
_OLD_KINDS = {"scale_weight": "weight_scale", "scale_input": "input_scale"}  # ComfyUI's fp8 files of 2024 and 2025
_COMPANIONS = {kind: kind for kind in (*_KINDS, *_W4A8_KINDS, *LlmInt8Matrix.kinds, *_UNKNOWN_KINDS)} | _OLD_KINDS
# Those whose names go on after the weight's own: bitsandbytes', and optimum-quanto's, in whose files the weight itself
# is one of them (https://github.com/huggingface/optimum-quanto, `tensor/weights/qbytes.py`).
_UNDER_WEIGHT = {kind: kind for kind in FourBitMatrix.kinds} | {"_scale": "weight_scale"}
_BNB_STATE = ".weight.quant_state.bitsandbytes__"
_QUANTO_WEIGHT = ".weight._data"
_OLD_FP8_MARKER = "scaled_fp8"
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")

QUANTO_INT8, QUANTO_FP8 = "quanto int8", "quanto float8"
_CLASSES: dict[str, type[scaled.QuantizedMatrix]] = {
    metadata.FLOAT8_E4M3: scaled.Fp8Matrix,
    metadata.FLOAT8_ROWS: scaled.Fp8Matrix,
    metadata.FLOAT8_BLOCKS: Fp8Squares,
    metadata.FLOAT8_E5M2: scaled.E5m2Matrix,
    metadata.INT8: scaled.Int8Matrix,
    metadata.INT8_BLOCKS: Int8Squares,
    metadata.INT4: scaled.W4A4Matrix,
    metadata.W4A4: scaled.W4A4Matrix,
    metadata.W4A8: W4A8Matrix,
    metadata.MXFP8: Mxfp8Matrix,
    metadata.NVFP4: Nvfp4Matrix,
    BNB_4BIT: FourBitMatrix,
    BNB_8BIT: LlmInt8Matrix,
    QUANTO_INT8: scaled.Int8Matrix,
    QUANTO_FP8: scaled.Fp8Matrix,
}
_QUANTO = {"I8": QUANTO_INT8, "F8_E4M3": QUANTO_FP8}


def stored_tensors(file: TensorFile) -> dict[str, StoredTensor]:
    """List every tensor that the file means, by its name in the file, without scales and metadata.

    What optimum-quanto calls `NAME.weight._data` is `NAME.weight`. Raises `CheckpointError` for quantisation metadata
    that is damaged or contradicts itself or the tensors, for weights in a form that is not read or that nothing tells
    the form of, and for scales without a weight, except those of the two dead matrices `last.down` and `last.up`, which
    vanish. Reads headers, and metadata that is in tensors.
    """
    if isinstance(file, SplitGgufFile):
        return {name: tensor for part in file.parts for name, tensor in stored_tensors(part).items()}
    if isinstance(file, GgufFile):
        # ggml writes its plain floats under the names that safetensors has for them
        return {
            name: PlainTensor(file, name) if header.dtype in FLOAT_BYTES else GgmlTensor(file, name)
            for name, header in file.headers.items()
        }
    foreign.refuse(file)
    names, companions, full_precision = _sort_out(file)
    layers = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    for layer, found in companions.items():
        if layer not in layers and not f".{layer}.weight".endswith(tuple(f".{dead}" for dead in DEAD_TENSORS)):
            problem = f"belongs to {layer}.weight, which is missing"
            raise CheckpointError.of(file.path, problem, name=min(found.values()))
    quantized = metadata.read_quantization_metadata(file, layers)
    default = metadata.read_format_of_all(file)
    stored: dict[str, StoredTensor] = {}
    unmarked = False
    for name, in_file in names.items():
        layer = name.removesuffix(".weight")
        found, said = (companions.get(layer, {}), quantized.get(layer)) if layer != name else ({}, None)
        if "weight_scale" in found:
            said = said or default
        unmarked = unmarked or (said is None and bool(found.keys() - {"input_scale"}))
        stored[name] = _stored(file, in_file, found, said, full_precision=name.startswith(full_precision))
    if unmarked:
        foreign.refuse_by_config(file)
    return stored


def _sort_out(file: TensorFile) -> tuple[dict[str, str], dict[str, dict[str, str]], tuple[str, ...]]:
    """Names that stay and what these are in the file, companions by layer and kind, and prefixes under which fp8 layers
    want full precision."""
    names: dict[str, str] = {}
    companions: dict[str, dict[str, str]] = defaultdict(dict)
    full_precision: list[str] = []
    for name, header in file.headers.items():
        layer, kind = _companion(name)
        if name.rpartition(".")[2] == _OLD_FP8_MARKER:
            if header.shape == (2,):  # all that the marker says besides the dtype, which the weights have too
                full_precision.append(name.removesuffix(_OLD_FP8_MARKER))
        elif not layer or kind is None:
            means = name.removesuffix("._data") if name.endswith(_QUANTO_WEIGHT) else name
            if means in names:
                raise CheckpointError.of(file.path, f"means the same as {names[means]}", name=name)
            names[means] = name
        elif kind in companions[layer]:
            raise CheckpointError.of(file.path, f"means the same as {companions[layer][kind]}", name=name)
        else:
            companions[layer][kind] = name
    return names, companions, tuple(full_precision)


def _companion(name: str) -> tuple[str, str | None]:
    """The layer and the kind of what goes with a weight; the kind is None for anything else."""
    layer, _, last = name.rpartition(".")
    if layer.endswith(".weight") and last in _UNDER_WEIGHT:
        return layer.removesuffix(".weight"), _UNDER_WEIGHT[last]
    if _BNB_STATE in name:
        return name.partition(_BNB_STATE)[0], "quant_state"
    return layer, _COMPANIONS.get(last)


def _stored(
    file: TensorFile,
    name: str,
    companions: dict[str, str],
    said: metadata.QuantizationMetadata | None,
    *,
    full_precision: bool,
) -> StoredTensor:
    shape, dtype = file.headers[name]
    if said is None:
        companions, said = _without_metadata(file, name, companions, full_precision=full_precision)
    if said is None:
        if dtype in scaled.FLOAT8_FORMATS:
            return scaled.Fp8Cast(file, name, full_precision=full_precision)
        if dtype in _INTEGERS and name.endswith(".weight"):
            problem = "is quantised, but neither the header nor a comfy_quant tensor says how"
            if "weight_scale_2" in companions:
                problem = "is quantised to NVFP4 as ModelOpt writes it, without a mark of ComfyUI's, which is not read"
            elif (method := foreign.quantization_method(file)) is not None:
                problem = f"is quantised by {method}, as the config.json beside it says, in a form that is not read"
            expected = f"a download in {foreign.READABLE}"
            raise CheckpointError.of(file.path, problem, name=name, expected=expected, found=f"{dtype} {shape}")
        for kind, companion in companions.items():
            if kind != "input_scale" and dtype in FLOAT_BYTES:
                raise CheckpointError.of(file.path, f"is for a quantised weight, and {name} is not", name=companion)
        return PlainTensor(file, name)
    return _CLASSES[said.format](scaled.Layer(file, name, companions, said))


def _without_metadata(
    file: TensorFile, name: str, companions: dict[str, str], *, full_precision: bool
) -> tuple[dict[str, str], metadata.QuantizationMetadata | None]:
    """A weight's companions and how it is quantised, by what lies beside it; None for what is not, or is fp8 without a
    scale."""
    shape, dtype = file.headers[name]
    if "quant_state" in companions:
        return companions, metadata.QuantizationMetadata(BNB_4BIT)
    if "SCB" in companions:
        return companions, metadata.QuantizationMetadata(BNB_8BIT)
    if name.endswith(_QUANTO_WEIGHT) and dtype in _QUANTO:
        used = {kind: each for kind, each in companions.items() if kind not in ("input_scale", "output_scale")}
        return used, metadata.QuantizationMetadata(_QUANTO[dtype])
    if dtype not in scaled.FLOAT8_FORMATS or companions.keys() <= {"input_scale"}:
        return companions, None
    # DeepSeek calls a factor an inverse; see the class
    inverse = companions.get("weight_scale_inv")
    if inverse is not None and "weight_scale" not in companions:
        companions = {kind: each for kind, each in companions.items() if kind != "weight_scale_inv"}
        companions["weight_scale"] = inverse
    scales = file.headers[companions["weight_scale"]].shape if "weight_scale" in companions else ()
    format = scaled.FLOAT8_FORMATS[dtype]
    by_square = scales != (1, 1) and square_of(shape, scales) is not None
    if dtype == "F8_E4M3" and (inverse is not None or by_square):
        format = metadata.FLOAT8_BLOCKS
    return companions, metadata.QuantizationMetadata(format, full_precision=full_precision)


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
