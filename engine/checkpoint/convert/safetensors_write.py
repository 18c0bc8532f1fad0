"""Writes a safetensors file tensor by tensor, so that a file may be larger than memory."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch

from engine.checkpoint.files.mapped_file import DTYPES
from engine.errors import CheckpointError

_NAMES = {getattr(torch, dtype.torch): name for name, dtype in DTYPES.items()}
_ENTRY_BYTES = 1024  # of a header that are set aside for a tensor and what the metadata says of it
_AT_ONCE = 1 << 26  # bytes


class SafetensorsWriter:
    """A safetensors file in the making: it appears under its name, whole, when the `with` block ends without an error.

    The header comes first in such a file and is known last, so room is set aside for it and filled up with blanks, as
    the format allows.
    """

    def __init__(self, path: Path, most_tensors: int) -> None:
        """Raises `CheckpointError` if the file cannot be written. `metadata` may be filled until the block ends."""
        self.path = path
        self.metadata: dict[str, str] = {}
        self._room = (most_tensors + 1) * _ENTRY_BYTES
        self._entries: dict[str, object] = {}
        self._end = 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self._file = self._temporary.open("wb")
            self._file.seek(8 + self._room)
        except OSError as error:
            raise CheckpointError.of(path, f"cannot be written: {error.strerror}") from None

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append a tensor. Raises `CheckpointError` if the disk does not take it."""
        assert name not in self._entries
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        self._entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._end, self._end + flat.numel()],
        }
        self._end += flat.numel()
        try:
            for start in range(0, flat.numel(), _AT_ONCE):
                self._file.write(flat[start : start + _AT_ONCE].numpy().data)
        except OSError as error:
            raise CheckpointError.of(self.path, f"cannot be written: {error.strerror}") from None

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            with suppress(OSError):  # a full disk, of which there is an error already
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        header: dict[str, object] = {"__metadata__": self.metadata} if self.metadata else {}
        data = json.dumps({**header, **self._entries}).encode()
        assert len(data) <= self._room
        try:
            self._file.seek(0)
            self._file.write(self._room.to_bytes(8, "little") + data.ljust(self._room))
            self._file.close()
            self._temporary.replace(self.path)
        except OSError as error:
            raise CheckpointError.of(self.path, f"cannot be written: {error.strerror}") from None
