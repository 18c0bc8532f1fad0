"""Which layers of a file are quantised, and how: its header's metadata says so, or a small tensor beside the weight,
or both."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any, NamedTuple

from engine.checkpoint.files.stored import TensorFile
from engine.config.json_fields import JsonFields, parse_json_object
from engine.errors import CheckpointError

HEADER_KEY = "_quantization_metadata"
BLOB = "comfy_quant"  # the tensor's name after its layer's
_LARGEST_BLOB = 1 << 16  # bytes; real ones have about a hundred
_LARGEST_GROUP = 4096  # columns

FLOAT8_E4M3, FLOAT8_E5M2 = "float8_e4m3fn", "float8_e5m2"
INT8, MXFP8, NVFP4, W4A4, W4A8 = "int8_tensorwise", "mxfp8", "nvfp4", "convrot_w4a4", "asym_w4a8_int8"
INT4, INT8_BLOCKS, FLOAT8_BLOCKS = "int4_tensorwise", "int8_blockwise", "float8_e4m3fn_blockwise"
FLOAT8_ROWS = "float8_e4m3fn_rowwise"
FORMATS = (
    *(FLOAT8_E4M3, FLOAT8_ROWS, FLOAT8_BLOCKS, FLOAT8_E5M2, INT8, INT8_BLOCKS),
    *(MXFP8, NVFP4, INT4, W4A4, W4A8),
)
_ALWAYS_ROTATED = (W4A4, W4A8)
_FILES_FORMAT = "quant_format"  # in the header: the format of all layers with scales of which nothing else is said
_WITH_BLOCKS = (INT8_BLOCKS, FLOAT8_BLOCKS, W4A8)  # of which `group_size` says how large they are

# What else writers of int4 say, and all that is read of it: other values mean other bytes, or tensors beside them.
_INT4 = {"bits": 4, "packing": "signed_low_high", "stabilizer_rank": 0}
_WIDTHS = ("in_features", "padded_in_features")

_OPTIONS = (
    *("format", "convrot", "convrot_groupsize", "full_precision_matrix_mult", "group_size", "awq"),
    *(*_INT4, *_WIDTHS),
)
_Options = dict[str, Any]


class QuantizationMetadata(NamedTuple):
    """How a layer is quantised.

    format: one of `FORMATS`, or what the format is called that is known without metadata. rotated: `group` columns at a
    time, before they were quantised. full_precision: products with this layer are to be computed in the model's dtype.
    block: columns that have a scale together; None if that is not said.
    """

    format: str
    rotated: bool = False
    group: int = 256
    full_precision: bool = False
    block: int | None = None


def read_quantization_metadata(file: TensorFile, layers: Set[str]) -> dict[str, QuantizationMetadata]:
    """Read the metadata of a file's layers. layers: the names, without `.weight`, that the file has weights for.

    What is said of a layer that the file does not have is left out: it changes no weight. Raises `CheckpointError`
    for metadata that is damaged, unknown, or contradicts itself.
    """
    in_header, in_blobs = _align(_header_options(file), layers), _blob_options(file)
    metadata = {}
    for layer in sorted((in_header.keys() | in_blobs.keys()) & layers):  # so that the same one is always refused
        header, blob = in_header.get(layer, {}), in_blobs.get(layer, {})
        for option in header.keys() & blob.keys():
            if header[option] != blob[option]:
                problem = f"the header's metadata and the {BLOB} tensor disagree on {option}"
                ours, theirs = (json.dumps(options[option])[:80] for options in (header, blob))
                raise CheckpointError.of(file.path, problem, name=layer, expected=ours, found=theirs)
        metadata[layer] = _parse(JsonFields(file.path, header | blob, f"{layer}: "))
    return metadata


def read_format_of_all(file: TensorFile) -> QuantizationMetadata | None:
    """Return how the header says that all layers of a file are quantised; None if it names no known format."""
    format = file.metadata.get(_FILES_FORMAT)
    return QuantizationMetadata(format, rotated=format in _ALWAYS_ROTATED) if format in FORMATS else None


def _parse(fields: JsonFields) -> QuantizationMetadata:
    format = fields.values.get("format")
    if format not in FORMATS:
        problem = "marks weights as quantised in a format that cannot be read; use another download of this model"
        if format is None:
            problem = "marks weights as quantised without saying in which format; use another download of this model"
        found = None if format is None else json.dumps(format)[:80]
        name = f"{fields.prefix}format"
        raise CheckpointError.of(fields.file, problem, name=name, expected=f"one of {', '.join(FORMATS)}", found=found)
    if fields.boolean("awq", False):  # columns were divided by factors that are kept elsewhere
        raise fields.error("awq", "false", True)
    if format == INT4:
        for option, read in _INT4.items():
            fields.expect(option, read, default=read)
        if all(map(fields.has, _WIDTHS)):
            fields.expect(_WIDTHS[1], fields.values[_WIDTHS[0]])
    group = fields.integer("convrot_groupsize", 256, least=4, most=_LARGEST_GROUP)
    if group.bit_count() != 1 or group.bit_length() % 2 == 0:
        raise fields.error("convrot_groupsize", f"a power of 4 up to {_LARGEST_GROUP}", group)
    rotated = format in _ALWAYS_ROTATED or bool(fields.boolean("convrot", False))
    block = None
    if format in _WITH_BLOCKS and fields.has("group_size"):
        block = fields.integer("group_size", most=_LARGEST_GROUP)
    full_precision = bool(fields.boolean("full_precision_matrix_mult", False))
    return QuantizationMetadata(format, rotated, group, full_precision, block)


def _header_options(file: TensorFile) -> dict[str, _Options]:
    """What the header says, by layer."""
    text = file.metadata.get(HEADER_KEY)
    if text is None:
        return {}
    layers, problem = parse_json_object(file.path, text, HEADER_KEY).get("layers"), "has a value that does not fit"
    if not isinstance(layers, dict):
        raise CheckpointError.of(file.path, problem, name=f"{HEADER_KEY}.layers", expected="an object")
    return {layer: _options(file, layer, values) for layer, values in layers.items()}


def _blob_options(file: TensorFile) -> dict[str, _Options]:
    """What tensors beside the weights say, by layer."""
    blobs = {}
    for name in file.headers:
        layer, _, last = name.rpartition(".")
        if last == BLOB:
            blobs[layer] = _options(file, layer, read_blob(file, name))
    return blobs


def read_blob(file: TensorFile, name: str) -> dict[str, Any]:
    """Read the json object that a small tensor's bytes are. Raises `CheckpointError`."""
    shape, dtype = file.headers[name]
    if dtype != "U8" or len(shape) != 1 or not 0 < shape[0] <= _LARGEST_BLOB:
        allowed = f"1 to {_LARGEST_BLOB} bytes (U8) in one dimension"
        problem = "is not quantization metadata"
        raise CheckpointError.of(file.path, problem, name=name, expected=allowed, found=f"{dtype} {shape}")
    try:
        text = file.octets(name).tobytes().rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise CheckpointError.of(file.path, "is not UTF-8", name=name) from None
    return parse_json_object(file.path, text, name)


def _options(file: TensorFile, layer: str, values: Any) -> _Options:
    """The options that are known here; early files have some of them one level down, under `params`."""
    nested = values.get("params") if isinstance(values, dict) else None
    if not isinstance(values, dict) or not isinstance(nested, dict | None):
        problem = "has metadata that is not a json object"
        raise CheckpointError.of(file.path, problem, name=layer)
    merged = (nested or {}) | values
    return {key: merged[key] for key in _OPTIONS if merged.get(key) is not None}


def _align(options: dict[str, _Options], layers: Set[str]) -> dict[str, _Options]:
    """The options under the layers' own names: a prefix that all of them lack, or have too much, is put right.

    Only if none of them names a layer as it is, and one such prefix fits them all.
    """
    if not options or options.keys() & layers:
        return options
    first = next(iter(options))
    prefixes = [(layer.removesuffix(first), "") for layer in layers if layer.endswith(f".{first}")]  # added, removed
    prefixes += [("", first.removesuffix(layer)) for layer in layers if first.endswith(f".{layer}")]
    aligned = [
        {added + name.removeprefix(removed): said for name, said in options.items()}
        for added, removed in prefixes
        if all(name.startswith(removed) for name in options)
    ]
    fitting = [each for each in aligned if each.keys() <= layers]
    return fitting[0] if len(fitting) == 1 else options
