"""How files mark their quantised layers: in the header's metadata, in a small tensor beside the weight, or both."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from engine.checkpoint.files.stored import TensorFile
from engine.config.json_fields import JsonFields
from engine.errors import CheckpointError

HEADER_KEY = "_quantization_metadata"
BLOB = "comfy_quant"  # the tensor's name after its layer's
LARGEST_BLOB = 1 << 16  # bytes; real ones have about a hundred
LARGEST_GROUP = 4096

FLOAT8_E4M3, FLOAT8_E5M2 = "float8_e4m3fn", "float8_e5m2"
INT8, MXFP8, NVFP4, W4A4, W4A8 = "int8_tensorwise", "mxfp8", "nvfp4", "convrot_w4a4", "asym_w4a8_int8"
FORMATS = (FLOAT8_E4M3, FLOAT8_E5M2, INT8, MXFP8, NVFP4, W4A4, W4A8)

_OPTIONS = ("format", "convrot", "convrot_groupsize", "full_precision_matrix_mult")


@dataclass(frozen=True)
class Mark:
    """format: one of `FORMATS`. rotated: `group` columns at a time, before they were quantised. full_precision:
    products with this layer are to be computed in the model's dtype."""

    format: str
    rotated: bool = False
    group: int = 256
    full_precision: bool = False


def read_marks(file: TensorFile, layers: Collection[str]) -> dict[str, Mark]:
    """The marks of a file's layers. layers: the names, without `.weight`, that the file has weights for.

    A mark whose layer the file does not have is left out: nothing can be misread for it. Raises `CheckpointError` for
    marks that are damaged, unknown, or contradict each other.
    """
    in_header = _align(_header_options(file), layers)
    in_blobs = _blob_options(file)
    marks = {}
    for layer in in_header.keys() | in_blobs.keys():
        if layer in layers:
            options = _merge(file, layer, in_header.get(layer, {}), in_blobs.get(layer, {}))
            marks[layer] = _mark(file, layer, options)
    return marks


def _mark(file: TensorFile, layer: str, options: dict[str, Any]) -> Mark:
    fields = JsonFields(file.path, options, f"{layer}: ")
    format = options.get("format")
    if format not in FORMATS:
        raise fields.error("format", f"one of {', '.join(FORMATS)}", format)
    group = fields.integer("convrot_groupsize", 256, least=4, most=LARGEST_GROUP)
    if group.bit_count() != 1 or group.bit_length() % 2 == 0:
        raise fields.error("convrot_groupsize", f"a power of 4 up to {LARGEST_GROUP}", group)
    return Mark(
        format,
        rotated=format == W4A4 or bool(fields.boolean("convrot", False)),
        group=group,
        full_precision=bool(fields.boolean("full_precision_matrix_mult", False)),
    )


def _merge(file: TensorFile, layer: str, header: dict[str, Any], blob: dict[str, Any]) -> dict[str, Any]:
    for option in header.keys() & blob.keys():
        if header[option] != blob[option]:
            raise CheckpointError.of(
                file.path,
                f"the header's mark and the {BLOB} tensor disagree on {option}",
                name=layer,
                expected=_shown(header[option]),
                found=_shown(blob[option]),
            )
    return header | blob


def _header_options(file: TensorFile) -> dict[str, dict[str, Any]]:
    text = file.metadata.get(HEADER_KEY)
    if text is None:
        return {}
    layers = _object(file, text, HEADER_KEY).get("layers")
    if not isinstance(layers, dict):
        raise CheckpointError.of(
            file.path, "has a value that does not fit", name=f"{HEADER_KEY}.layers", expected="an object"
        )
    return {layer: _options(file, layer, values) for layer, values in layers.items()}


def _blob_options(file: TensorFile) -> dict[str, dict[str, Any]]:
    blobs = {}
    for name, header in file.headers.items():
        layer, _, last = name.rpartition(".")
        if last != BLOB:
            continue
        if header.dtype != "U8" or len(header.shape) != 1 or not 0 < header.shape[0] <= LARGEST_BLOB:
            raise CheckpointError.of(
                file.path,
                "is not a mark",
                name=name,
                expected=f"1 to {LARGEST_BLOB} bytes (U8) in one dimension",
                found=f"{header.dtype} {header.shape}",
            )
        try:
            text = file.octets(name).tobytes().rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise CheckpointError.of(file.path, "is not UTF-8", name=name) from None
        blobs[layer] = _options(file, layer, _object(file, text, name))
    return blobs


def _object(file: TensorFile, text: str, name: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError.of(file.path, f"is not valid json: {error}", name=name) from None
    if not isinstance(values, dict):
        raise CheckpointError.of(file.path, "does not hold a json object", name=name, found=type(values).__name__)
    return values


def _options(file: TensorFile, layer: str, values: Any) -> dict[str, Any]:
    """The options that are known here; early files have some of them one level down, under `params`."""
    nested = values.get("params") if isinstance(values, dict) else None
    if not isinstance(values, dict) or not isinstance(nested, dict | None):
        raise CheckpointError.of(file.path, "has a mark that is not a json object", name=layer)
    merged = (nested or {}) | values
    return {key: merged[key] for key in _OPTIONS if merged.get(key) is not None}


def _align(marks: dict[str, dict[str, Any]], layers: Collection[str]) -> dict[str, dict[str, Any]]:
    """Marks under the layers' own names: a prefix that all marks lack, or have too much, is put right.

    Only if no mark names a layer as it is, and one such prefix fits them all.
    """
    if not marks or any(layer in layers for layer in marks):
        return marks
    first = next(iter(marks))
    fitting = []
    for layer in layers:
        if layer.endswith(f".{first}"):
            added, removed = layer.removesuffix(first), ""
        elif first.endswith(f".{layer}"):
            added, removed = "", first.removesuffix(layer)
        else:
            continue
        if all(name.startswith(removed) and added + name.removeprefix(removed) in layers for name in marks):
            fitting.append((added, removed))
    if len(fitting) != 1:
        return marks
    added, removed = fitting[0]
    return {added + name.removeprefix(removed): options for name, options in marks.items()}


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]
