"""Writes a safetensors file tensor by tensor, so that a file may be larger than memory; and outputs that are whole, or
not there at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch

from engine.checkpoint.files.mapped_file import DTYPES
from engine.errors import CheckpointError

_NAMES = {getattr(torch, dtype.torch): name for name, dtype in DTYPES.items()}
_ENTRY_BYTES = 1024  # of a header that are set aside for a tensor and what the metadata says of it
_AT_ONCE = 1 << 26  # bytes


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` for a file or folder, which is renamed to `path` when the `with` block ends without an
    error, and removed otherwise. Raises `CheckpointError` if the disk does not take it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError.of(path, f"cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # of a folder, or of what is not there
            temporary.unlink()


@contextmanager
def safetensors_writer(path: Path, most_tensors: int) -> Iterator[SafetensorsWriter]:
    """Write a safetensors file, which is there when the `with` block ends. Raises as `written_whole` does."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        writer = SafetensorsWriter(file, (most_tensors + 1) * _ENTRY_BYTES)
        yield writer
        writer.finish()


class SafetensorsWriter:
    """Appends tensors to a file.

    The header comes first in such a file and is known last, so room is set aside for it and filled up with blanks, as
    the format allows. metadata: may be filled until `finish`.
    """

    def __init__(self, file: BinaryIO, room: int) -> None:
        """room: bytes for the header."""
        self.metadata: dict[str, str] = {}
        self._file, self._room = file, room
        self._entries: dict[str, object] = {}
        self._end = 0  # of the data so far, in bytes
        file.seek(8 + room)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append a tensor of any shape, of a dtype that the format knows."""
        assert name not in self._entries
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        end = self._end + flat.numel()
        shape = list(tensor.shape)
        self._entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [self._end, end]}
        self._end = end
        for part in flat.split(_AT_ONCE):
            self._file.write(part.numpy().data)

    def finish(self) -> None:
        """Write the header."""
        header: dict[str, object] = {"__metadata__": self.metadata} if self.metadata else {}
        data = json.dumps({**header, **self._entries}).encode()
        assert len(data) <= self._room
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + data.ljust(self._room))
