"""The header of a GGUF file: metadata, and what and where its tensors are.

It is read here and not by the gguf library, whose reader loops as often as a file's counts say and checks no length
against the file.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.checkpoint.files.mapped_file import MappedFile, check_shape, shown
from engine.errors import CheckpointError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# A text encoder's, with 150,000 tokens and as many merges, takes 6 MB; a transformer's some 30 kB.
_LARGEST_HEADER = 16 << 20
_MOST_ENTRIES = 1 << 16
_MOST_DIMENSIONS = 4
_ALIGNMENT_KEY, _ALIGNMENT, _LARGEST_ALIGNMENT = "general.alignment", 32, 1 << 16
_SHAPE_KEY = "comfy.gguf.orig_shape."

# value types of metadata, by their number
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_INTEGERS = (0, 1, 2, 3, 4, 5, 10, 11)
_STRING, _ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """shape: the logical one. dtype: ggml's name. start: of the first byte in the file. block: elements and bytes."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    block: tuple[int, int]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) // self.block[0] * self.block[1]


@dataclass
class GgufHeader:
    """metadata: strings and, as text, numbers; of arrays none. tensors: by name."""

    metadata: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)


def read_gguf_header(file: MappedFile) -> GgufHeader:
    """Raises `CheckpointError` for whatever is not a whole GGUF file of version 2 or 3."""
    cursor = _Cursor(file)
    if cursor.take(4) != MAGIC:
        raise CheckpointError.of(file.path, "is not a GGUF file")
    version = cursor.scalar("<I")
    if version not in _VERSIONS:
        big_endian = ", big-endian" if version & 0xFFFF == 0 else ""
        raise CheckpointError.of(
            file.path, "has a version of GGUF that cannot be read", expected="2 or 3", found=f"{version}{big_endian}"
        )
    tensor_count, key_count = cursor.count("tensors"), cursor.count("metadata keys")
    header = GgufHeader()
    shapes: dict[str, tuple[int, ...]] = {}
    keys = set()
    for _ in range(key_count):
        key = cursor.string("a metadata key")
        if key in keys:
            raise CheckpointError.of(file.path, "is there twice", name=shown(key))
        keys.add(key)
        kind = cursor.scalar("<I")
        if kind == _ARRAY:
            values = cursor.array(key, wanted=key.startswith(_SHAPE_KEY))
            if values is not None:
                shapes[key.removeprefix(_SHAPE_KEY)] = values
        else:
            header.metadata[key] = cursor.value(key, kind)
    infos = [_read_info(cursor, shapes) for _ in range(tensor_count)]
    alignment = _alignment(file, header.metadata)
    data_start = -(-cursor.position // alignment) * alignment
    for name, info in infos:
        if name in header.tensors:
            raise CheckpointError.of(file.path, "tensor is there twice", name=shown(name))
        if info.start % alignment:
            raise CheckpointError.of(
                file.path, "begins where no tensor may", name=shown(name), expected=f"a multiple of {alignment}"
            )
        header.tensors[name] = info._replace(start=data_start + info.start)
    _check_spans(file, header.tensors)
    return header


def _read_info(cursor: _Cursor, shapes: dict[str, tuple[int, ...]]) -> tuple[str, TensorInfo]:
    """A tensor's name and what is said of it; start: from where the data begins."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    path = cursor.file.path
    name = cursor.string("a tensor's name")
    dimensions = cursor.scalar("<I")
    if dimensions > _MOST_DIMENSIONS:
        raise CheckpointError.of(
            path, "has too many dimensions", name=shown(name), expected=f"up to {_MOST_DIMENSIONS}", found=dimensions
        )
    # ggml counts dimensions from the one that is contiguous
    stored = check_shape(path, name, tuple(cursor.scalar("<Q") for _ in range(dimensions))[::-1])
    number = cursor.scalar("<I")
    start = cursor.scalar("<Q")
    try:
        dtype = GGMLQuantizationType(number)
    except ValueError:
        raise CheckpointError.of(
            path, "tensor has a dtype that cannot be read", name=shown(name), found=f"ggml's number {number}"
        ) from None
    block = GGML_QUANT_SIZES[dtype]
    if (stored[-1] if stored else 1) % block[0]:
        raise CheckpointError.of(
            path,
            "has rows of parts of blocks",
            name=shown(name),
            expected=f"a multiple of {block[0]} columns for {dtype.name}",
            found=stored,
        )
    shape = check_shape(path, name, shapes.get(name, stored))
    if math.prod(shape) != math.prod(stored):
        raise CheckpointError.of(
            path, "does not fit the tensor", name=shown(_SHAPE_KEY + name), expected=stored, found=shape
        )
    return name, TensorInfo(shape, dtype.name, start, block)


def _alignment(file: MappedFile, metadata: dict[str, str]) -> int:
    text = metadata.get(_ALIGNMENT_KEY, str(_ALIGNMENT))
    # int() itself refuses thousands of digits
    alignment = int(text) if text.isdecimal() and len(text) <= len(str(_LARGEST_ALIGNMENT)) else 0
    if not 0 < alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise CheckpointError.of(
            file.path,
            "has a value that does not fit",
            name=_ALIGNMENT_KEY,
            expected=f"a power of two up to {_LARGEST_ALIGNMENT}",
            found=shown(text),
        )
    return alignment


def _check_spans(file: MappedFile, tensors: dict[str, TensorInfo]) -> None:
    """No two tensors may overlap, and the file must be long enough for all."""
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].bytes)):
        if info.start < position:
            raise CheckpointError.of(file.path, "its data overlaps another tensor's", name=shown(name))
        position = info.start + info.bytes
        if position > file.size:
            raise CheckpointError.of(
                file.path,
                "is not a whole GGUF file: a tensor ends beyond it",
                name=shown(name),
                expected=f"at least {position} bytes",
                found=file.size,
            )


class _Cursor:
    """Reads one value after another, up to the end of the file or the most that a header may have."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.position = 0
        self._end = min(file.size, _LARGEST_HEADER)

    def take(self, count: int) -> bytes:
        self._skip(count)
        return self.file.data[self.position - count : self.position]

    def scalar(self, form: str) -> int:
        (value,) = self._unpack(form)
        return value

    def count(self, what: str) -> int:
        value = self.scalar("<Q")
        if value > _MOST_ENTRIES:
            raise CheckpointError.of(
                self.file.path, f"has too many {what}", expected=f"at most {_MOST_ENTRIES}", found=value
            )
        return value

    def string(self, what: str) -> str:
        try:
            return self.take(self.scalar("<Q")).decode()
        except UnicodeDecodeError:
            raise CheckpointError.of(self.file.path, f"has {what} that is not UTF-8") from None

    def value(self, key: str, kind: int) -> str:
        """A string, or a number as text."""
        if kind == _STRING:
            return self.string("a metadata value")
        return str(self._unpack(self._form(key, kind))[0])

    def array(self, key: str, *, wanted: bool) -> tuple[int, ...] | None:
        """The whole numbers of an array that is wanted; of another it only looks for the end."""
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if kind == _STRING:
            self._skip_strings(count)
            return None
        form = self._form(key, kind)
        begin = self.position
        self._skip(count * struct.calcsize(form))
        if not wanted or kind not in _INTEGERS:
            return None
        return struct.unpack_from(f"<{count}{form[1]}", self.file.data, begin)

    def _skip_strings(self, count: int) -> None:
        # millions of empty strings fit into a header: no calls in this loop but one
        data, end, length_at = self.file.data, self._end - 8, struct.Struct("<Q").unpack_from
        position = self.position
        for _ in range(count):
            if position > end:
                break
            position += 8 + length_at(data, position)[0]
        else:
            self._skip(position - self.position)
            return
        self._skip(position + 8 - self.position)

    def _form(self, key: str, kind: int) -> str:
        if kind not in _SCALARS:
            raise CheckpointError.of(self.file.path, "has a type that there is none of", name=shown(key), found=kind)
        return _SCALARS[kind]

    def _unpack(self, form: str) -> tuple[int, ...]:
        self._skip(struct.calcsize(form))
        return struct.unpack_from(form, self.file.data, self.position - struct.calcsize(form))

    def _skip(self, count: int) -> None:
        self.position += count
        if self.position > self._end:
            raise CheckpointError.of(
                self.file.path,
                "is not a whole GGUF file: its header goes beyond its end",
                expected=f"at most {self._end} bytes",
                found=self.position,
            )
