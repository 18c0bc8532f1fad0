"""A safetensors file: eight bytes that give the length of a JSON header, the header, and then the tensors' bytes.

The header is read here and not by the safetensors library, which knows no limits but its own 100 MB, takes the last
of two equal keys, and gives a slice only as a copy.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.checkpoint.files.mapped_file import DTYPES, MappedFile, check_shape, shown
from engine.checkpoint.files.stored import Bounds, Header
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch

# Two hundred times the header of the largest component. A hostile one of this size takes two seconds, and 700 MB
# while it is parsed.
LARGEST_HEADER = 16 << 20
_LENGTH_BYTES = 8
_METADATA = "__metadata__"


class SafetensorsFile:
    """An open safetensors file. See `TensorFile`."""

    def __init__(self, path: Path) -> None:
        """Read and check the header. Raises `CheckpointError`."""
        self.path = path
        self._file = MappedFile(path)
        data_start, fields = _read_header(self._file)
        self.metadata: Mapping[str, str] = _check_metadata(path, fields.pop(_METADATA, {}))
        self.headers: dict[str, Header] = {}
        self._starts: dict[str, int] = {}
        spans = []
        for name, entry in fields.items():
            header, begin, end = _check_entry(path, name, entry)
            self.headers[name] = header
            self._starts[name] = data_start + begin
            spans.append((begin, end, name))
        _check_spans(path, sorted(spans), self._file.size - data_start)

    def read(self, name: str, bounds: Bounds) -> torch.Tensor:
        """See `TensorFile.read`."""
        header = self.headers[name]
        return self._file.tensor(self._starts[name], header.shape, header.dtype, bounds)

    def octets(self, name: str, part: slice | None = None) -> np.ndarray:
        """See `TensorFile.octets`."""
        header = self.headers[name]
        part = part or slice(0, math.prod(header.shape) * DTYPES[header.dtype].size)
        return self._file.copy(self._starts[name] + part.start, part.stop - part.start)

    def header_file(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self.path

    def close(self) -> None:
        """Tensors that were read stay valid."""
        self._file.close()


def parse_json_object(path: Path, text: bytes) -> dict[str, Any]:
    """UTF-8 JSON that must be an object, no key of it given twice. Raises `CheckpointError`."""
    try:
        values = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError.of(path, f"is not valid json: {shown(error)}") from None
    if not isinstance(values, dict):
        raise CheckpointError.of(path, "does not hold a json object", found=type(values).__name__)
    return values


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is there twice")
    return values


def _read_header(file: MappedFile) -> tuple[int, dict[str, Any]]:
    """Where the data starts, and the header."""
    if file.size < _LENGTH_BYTES:
        raise CheckpointError.of(file.path, "is too short for a safetensors file", found=f"{file.size} bytes")
    length = int.from_bytes(file.copy(0, _LENGTH_BYTES).tobytes(), "little")
    start = _LENGTH_BYTES + length
    if length > LARGEST_HEADER or start > file.size:
        raise CheckpointError.of(
            file.path,
            "is not a whole safetensors file: its header is too long",
            expected=f"at most {min(LARGEST_HEADER, file.size - _LENGTH_BYTES)} bytes",
            found=length,
        )
    text = file.copy(_LENGTH_BYTES, length).tobytes()
    if not text.startswith(b"{"):
        raise CheckpointError.of(file.path, "is not a safetensors file: its header does not start with {")
    return start, parse_json_object(file.path, text)


def _check_metadata(path: Path, metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError.of(path, "has a value that does not fit", name=_METADATA, expected="strings by name")
    return metadata


def _check_entry(path: Path, name: str, entry: object) -> tuple[Header, int, int]:
    """What is said of one tensor, and where its bytes begin and end in the data."""
    try:
        name.encode()
    except UnicodeEncodeError:  # an escaped half of a surrogate pair
        raise CheckpointError.of(path, "has a name that is not Unicode", name=shown(name)) from None
    if not isinstance(entry, dict):
        raise CheckpointError.of(path, "is not described by a json object", name=shown(name))
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError.of(
            path,
            "tensor has a dtype that cannot be read",
            name=shown(name),
            expected=f"one of {', '.join(DTYPES)}",
            found=shown(dtype),
        )
    shape = check_shape(path, name, entry.get("shape"))
    offsets = entry.get("data_offsets")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int and offset >= 0 for offset in offsets)
        or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].size
    ):
        raise CheckpointError.of(
            path,
            "has data_offsets that do not fit",
            name=shown(name),
            expected=f"two that lie {math.prod(shape) * DTYPES[dtype].size} bytes apart",
            found=shown(offsets),
        )
    return Header(shape, dtype), offsets[0], offsets[1]


def _check_spans(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """The tensors' bytes must follow one another without gap or overlap, and be all that follows the header."""
    position = 0
    for begin, end, name in spans:
        if begin != position:
            raise CheckpointError.of(
                path,
                "its data does not begin where the tensor before it ends",
                name=shown(name),
                expected=position,
                found=shown(begin),
            )
        position = end
    if position != size:
        raise CheckpointError.of(
            path,
            "is not a whole safetensors file: its data has another length",
            expected=f"{shown(position)} bytes",
            found=size,
        )
