"""The header of a GGUF file: metadata, and the shapes, types and places of its tensors.

It is read here and not by the gguf library, whose reader loops as often as a file's counts say and checks no length
against the file.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from engine.checkpoint.files.mapped_file import MappedFile

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# A text encoder's, with 150,000 tokens and as many merges, takes 6 MB; a transformer's some 30 kB.
_LARGEST_HEADER = 16 << 20  # bytes
_MOST_ENTRIES = 1 << 16
_MOST_DIMENSIONS = 4
_MOST_WANTED = 64  # numbers of an array that is read
_ALIGNMENT_KEY, _ALIGNMENT, _LARGEST_ALIGNMENT = "general.alignment", 32, 1 << 16
_SHAPE_KEY = "comfy.gguf.orig_shape."

# Value types of metadata, by their number, as `struct` writes them.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_INTEGERS = (0, 1, 2, 3, 4, 5, 10, 11)
_STRING, _ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """What the header says of one tensor.

    shape: the logical one, in torch's order. dtype: ggml's name. start: of the first byte in the file. block: elements
    and bytes of one.
    """

    shape: tuple[int, ...]
    dtype: str
    start: int
    block: tuple[int, int]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) // self.block[0] * self.block[1]


def read_gguf_header(file: MappedFile) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Read the metadata (strings and, as text, numbers, but no arrays) and what is said of the tensors, by name.

    Raises `CheckpointError` for whatever is not a whole GGUF file of version 2 or 3.
    """
    cursor = _Cursor(file)
    if cursor.take(4) != MAGIC:
        raise file.error("is not a GGUF file")
    version = cursor.scalar("<I")
    if version not in _VERSIONS:
        found = f"{version}{', big-endian' if version & 0xFFFF == 0 else ''}"
        raise file.error("has a version of GGUF that cannot be read", expected="2 or 3", found=found)
    tensor_count, key_count = cursor.count("tensors"), cursor.count("metadata keys")
    metadata: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    keys = set()
    for _ in range(key_count):
        key = cursor.string("a metadata key")
        if key in keys:
            raise file.error("is there twice", name=key)
        keys.add(key)
        kind = cursor.scalar("<I")
        if kind != _ARRAY:
            metadata[key] = cursor.value(key, kind)
        elif (values := cursor.array(key, wanted=key.startswith(_SHAPE_KEY))) is not None:
            shapes[key.removeprefix(_SHAPE_KEY)] = values
    infos = [_read_info(cursor, shapes) for _ in range(tensor_count)]
    alignment = _alignment(file, metadata)
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, info in infos:
        if name in tensors:
            raise file.error("tensor is there twice", name=name)
        if info.start % alignment:
            raise file.error("begins where no tensor may", name=name, expected=f"a multiple of {alignment}")
        tensors[name] = info._replace(start=data_start + info.start)
    _check_spans(file, tensors)
    return metadata, tensors


def _read_info(cursor: _Cursor, shapes: dict[str, tuple[int, ...]]) -> tuple[str, TensorInfo]:
    """A tensor's name and what is said of it; start: from where the data begins."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    file = cursor.file
    name = cursor.string("a tensor's name")
    dimensions = cursor.scalar("<I")
    if dimensions > _MOST_DIMENSIONS:
        most = f"up to {_MOST_DIMENSIONS}"
        raise file.error("has too many dimensions", name=name, expected=most, found=dimensions)
    # ggml counts dimensions from the one that is contiguous
    stored = file.check_shape(name, tuple(cursor.scalar("<Q") for _ in range(dimensions))[::-1])
    number = cursor.scalar("<I")
    start = cursor.scalar("<Q")
    try:
        dtype = GGMLQuantizationType(number)
    except ValueError:
        found = f"ggml's number {number}"
        raise file.error("tensor has a dtype that cannot be read", name=name, found=found) from None
    block = GGML_QUANT_SIZES[dtype]
    if (stored[-1] if stored else 1) % block[0]:
        expected = f"a multiple of {block[0]} columns for {dtype.name}"
        raise file.error("has rows that are not whole blocks", name=name, expected=expected, found=stored)
    shape = file.check_shape(name, shapes.get(name, stored))
    if math.prod(shape) != math.prod(stored):
        raise file.error("does not fit the tensor", name=_SHAPE_KEY + name, expected=stored, found=shape)
    return name, TensorInfo(shape, dtype.name, start, block)


def _alignment(file: MappedFile, metadata: dict[str, str]) -> int:
    """Bytes: every tensor begins at a multiple of it, counted from where the data begins."""
    text = metadata.get(_ALIGNMENT_KEY, str(_ALIGNMENT))
    # int() itself refuses thousands of digits
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(_LARGEST_ALIGNMENT))
    alignment = int(text) if is_number else 0
    if not 0 < alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
        expected = f"a power of two up to {_LARGEST_ALIGNMENT}"
        raise file.error("has a value that does not fit", name=_ALIGNMENT_KEY, expected=expected, found=text)
    return alignment


def _check_spans(file: MappedFile, tensors: dict[str, TensorInfo]) -> None:
    """No two tensors may overlap, and the file must be long enough for all."""
    position = 0
    # twice by numbers, since sorting by pairs keeps other threads waiting for four times as long
    by_size = sorted(tensors.items(), key=lambda item: item[1].bytes)
    for name, info in sorted(by_size, key=lambda item: item[1].start):
        if info.start < position:
            raise file.error("its data overlaps another tensor's", name=name)
        position = info.start + info.bytes
        if position > file.size:
            problem = "is not a whole GGUF file, which may have to be downloaded again: a tensor ends beyond it"
            raise file.error(problem, name=name, expected=f"at least {position} bytes", found=file.size)


class _Cursor:
    """Reads one value after another, up to the end of the file or the most that a header may have."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.position = 0  # bytes
        self._end = min(file.size, _LARGEST_HEADER)

    def take(self, count: int) -> bytes:
        """Read `count` bytes. As all methods below, raises `CheckpointError` if the header ends before."""
        return self.file.data[self._skip(count) : self.position]

    def scalar(self, form: str) -> int:
        """Read a number. form: as `struct` writes it."""
        return struct.unpack_from(form, self.file.data, self._skip(struct.calcsize(form)))[0]

    def count(self, what: str) -> int:
        """Read how many entries follow."""
        value = self.scalar("<Q")
        if value > _MOST_ENTRIES:
            raise self.file.error(f"has too many {what}", expected=f"at most {_MOST_ENTRIES}", found=value)
        return value

    def string(self, what: str) -> str:
        """Read a length and UTF-8 text. what: named in an error."""
        try:
            return self.take(self.scalar("<Q")).decode()
        except UnicodeDecodeError:
            raise self.file.error(f"has {what} that is not UTF-8") from None

    def value(self, key: str, kind: int) -> str:
        """Read a string, or a number as text."""
        return self.string("a metadata value") if kind == _STRING else str(self.scalar(self._form(key, kind)))

    def array(self, key: str, *, wanted: bool) -> tuple[int, ...] | None:
        """Read the whole numbers of an array that is wanted; of another only look for the end, and return None."""
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if kind == _STRING:
            self._skip_strings(count)
            return None
        form = self._form(key, kind)
        begin = self._skip(count * struct.calcsize(form))
        if not wanted or kind not in _INTEGERS:
            return None
        if count > _MOST_WANTED:  # millions of numbers fit into a header
            raise self.file.error("is too long", name=key, expected=f"at most {_MOST_WANTED} numbers", found=count)
        return struct.unpack_from(f"<{count}{form[1]}", self.file.data, begin)

    def _skip_strings(self, count: int) -> None:
        # millions of empty strings fit into a header: no calls in this loop but one
        data, end, length_at = self.file.data, self._end - 8, struct.Struct("<Q").unpack_from
        position = self.position
        for _ in range(count):
            if position > end:
                position += 8  # which says that the header goes beyond its end
                break
            position += 8 + length_at(data, position)[0]
        self._skip(position - self.position)

    def _form(self, key: str, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.file.error("has an unknown type", name=key, found=kind)
        return _SCALARS[kind]

    def _skip(self, count: int) -> int:
        """Go on by `count` bytes. Returns where they begin."""
        begin = self.position
        self.position += count
        if self.position > self._end:
            problem = "is not a whole GGUF file, which may have to be downloaded again: its header goes beyond its end"
            raise self.file.error(problem, expected=f"at most {self._end} bytes", found=self.position)
        return begin
