"""A safetensors file: eight bytes that give the length of a JSON header, the header, and then the tensors' bytes; and
several of them, the shards, that an index (`*.safetensors.index.json`) lists.

The header is read here and not by the safetensors library, which knows no limits but its own 100 MB, takes the last
of two equal keys, and gives a slice only as a copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.checkpoint.files.mapped_file import DTYPES, MappedFile, shown
from engine.checkpoint.files.stored import Bounds, Header, TensorFile
from engine.config.bounded_json import FILE_LIMITS, LARGEST_JSON, JsonLimits
from engine.config.in_its_place import LOOKED_AT, answer_in_its_place, in_its_place, text_in_its_place
from engine.config.json_fields import parse_json_object
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch

LARGEST_HEADER = LARGEST_JSON  # bytes: two hundred times the header of the largest component
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_LONGEST_NAME = 255  # characters: no file system has longer ones
# How layers are quantised: it must be the same in all shards, of whose metadata the first that has a key counts.
_QUANTIZATION_METADATA = "_quantization_metadata"


class SafetensorsFile(MappedFile, TensorFile):
    """An open safetensors file."""

    def __init__(self, path: Path, limits: JsonLimits = FILE_LIMITS) -> None:
        """Read and check the header. Raises `CheckpointError`."""
        super().__init__(path)
        data_start, fields = _read_header(self, limits)
        self.metadata: dict[str, str] = fields.pop(_METADATA, {})
        if not isinstance(self.metadata, dict) or not all(isinstance(value, str) for value in self.metadata.values()):
            raise self.error("has a value that does not fit", name=_METADATA, expected="strings by name")
        self.headers: dict[str, Header] = {}
        self._starts: dict[str, int] = {}  # of each tensor's bytes, in the file
        spans = []
        for name, entry in fields.items():
            self.headers[name], begin, end = _check_entry(self, name, entry)
            self._starts[name] = data_start + begin
            spans.append((begin, end, name))
        _check_spans(self, sorted(spans), data_start)

    def read(self, name: str, bounds: Bounds) -> torch.Tensor:
        shape, dtype = self.headers[name]
        return self.tensor(self._starts[name], shape, dtype, bounds)

    def octets(self, name: str, part: slice | None = None) -> np.ndarray:
        shape, dtype = self.headers[name]
        return self.copy(self._starts[name], math.prod(shape) * DTYPES[dtype].size, part)


class ShardedFile(TensorFile):
    """All shards as one file. path: the index, or a name for the shards where there is none."""

    def __init__(self, path: Path, names: Iterable[str] | None = None) -> None:
        """Open every shard that the index names, or, where there is none, those of these names beside `path`. Raises
        `CheckpointError` if one is missing, lies outside the index's folder, or contradicts the index or another
        shard."""
        weight_map = _read_weight_map(path) if names is None else {}
        shards: dict[str, SafetensorsFile] = {}  # by tensor name
        metadata: dict[str, str] = {}
        for number, shard in enumerate(sorted(set(weight_map.values() if names is None else names))):
            file = SafetensorsFile(path.parent / shard)
            if twice := shards.keys() & file.headers.keys():
                name, problem = min(twice), "tensor is in another shard too"
                raise CheckpointError.of(file.path, problem, name=shown(name), found=shards[name].path.name)
            if number and metadata.get(_QUANTIZATION_METADATA) != file.metadata.get(_QUANTIZATION_METADATA):
                raise CheckpointError.of(file.path, "differs from another shard's", name=_QUANTIZATION_METADATA)
            shards |= dict.fromkeys(file.headers, file)
            metadata = {**file.metadata, **metadata}
        for name, shard in weight_map.items():
            if name not in shards or shards[name].path.name != shard:
                problem = "tensor is missing, though the index lists it"
                raise CheckpointError.of(path.parent / shard, problem, name=shown(name))
        self.path, self.metadata, self._shards = path, metadata, shards
        self.headers = {name: shard.headers[name] for name, shard in shards.items()}

    def read(self, name: str, bounds: Bounds) -> torch.Tensor:
        return self._shards[name].read(name, bounds)

    def octets(self, name: str, part: slice | None = None) -> np.ndarray:
        return self._shards[name].octets(name, part)

    def header_file(self, name: str) -> Path:
        """Return the shard that holds the tensor."""
        return self._shards[name].path

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()


def _read_header(file: MappedFile, limits: JsonLimits) -> tuple[int, dict[str, Any]]:
    """Where the data starts, in bytes, and the header."""
    if file.size < _LENGTH_BYTES:
        raise file.error("is too short for a safetensors file", found=f"{file.size} bytes")
    length = int.from_bytes(file.copy(0, _LENGTH_BYTES).tobytes(), "little")
    start = _LENGTH_BYTES + length
    if length > LARGEST_HEADER or start > file.size:
        beginning = file.data[:LOOKED_AT]
        if (other := in_its_place(beginning) or text_in_its_place(beginning)) is not None:
            raise file.error(other)
        problem = "is not a whole safetensors file, which may have to be downloaded again: its header is too long"
        most = min(LARGEST_HEADER, file.size - _LENGTH_BYTES)
        raise file.error(problem, expected=f"at most {most} bytes", found=length)
    text = file.copy(_LENGTH_BYTES, length).tobytes()
    if not text.startswith(b"{"):
        raise file.error("is not a safetensors file: its header does not start with {")
    return start, parse_json_object(file.path, text, limits=limits)


def _check_entry(file: MappedFile, name: str, entry: object) -> tuple[Header, int, int]:
    """What is said of one tensor, and where its bytes begin and end in the data."""
    try:
        name.encode()
    except UnicodeEncodeError:  # an escaped half of a surrogate pair
        raise file.error("has a name that is not Unicode", name=name) from None
    if not isinstance(entry, dict):
        raise file.error("is not described by a json object", name=name)
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        allowed = f"one of {', '.join(DTYPES)}"
        raise file.error("tensor has a dtype that cannot be read", name=name, expected=allowed, found=str(dtype))
    shape = file.check_shape(name, entry.get("shape"))
    size = math.prod(shape) * DTYPES[dtype].size
    offsets = entry.get("data_offsets")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int and offset >= 0 for offset in offsets)
        or offsets[1] - offsets[0] != size
    ):
        apart = f"two that lie {size} bytes apart"
        raise file.error("has data_offsets that do not fit", name=name, expected=apart, found=str(offsets))
    return Header(shape, dtype), offsets[0], offsets[1]


def _check_spans(file: MappedFile, spans: list[tuple[int, int, str]], data_start: int) -> None:
    """The tensors' bytes must follow one another without gap or overlap, and be all that follows the header."""
    position = 0
    for begin, end, name in spans:
        if begin != position:
            problem = "its data does not begin where the tensor before it ends"
            raise file.error(problem, name=name, expected=position, found=begin)
        position = end
    if data_start + position != file.size:
        problem = "is not a whole safetensors file, which may have to be downloaded again: its data has another length"
        raise file.error(problem, expected=f"{shown(position)} bytes", found=file.size - data_start)


def _read_weight_map(index: Path) -> dict[str, str]:
    """The file names of the shards by tensor name."""
    file = MappedFile(index)
    if file.size > LARGEST_HEADER:
        raise file.error("is too long for an index", expected=f"at most {LARGEST_HEADER} bytes", found=file.size)
    values = parse_json_object(file.path, file.data[:])
    if (answer := answer_in_its_place(values)) is not None:
        raise file.error(answer)
    weight_map: Any = values.get("weight_map")
    shards = [*weight_map.values()] if isinstance(weight_map, dict) else []
    if not shards or not all(isinstance(shard, str) for shard in shards):
        expected = "file names by tensor name"
        raise file.error("has a value that does not fit", name="weight_map", expected=expected)
    for shard in sorted(set(shards)):
        if not shard or len(shard) > _LONGEST_NAME or Path(shard).name != shard:
            raise file.error("names a shard outside its folder", name="weight_map", found=shown(shard))
    return weight_map
