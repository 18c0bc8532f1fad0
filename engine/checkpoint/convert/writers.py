"""Writes safetensors and GGUF files tensor by tensor, so that a file may be larger than memory. Each is there when it
is whole, or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from engine.checkpoint.files.mapped_file import DTYPES
from engine.errors import CheckpointError

_NAMES = {getattr(torch, dtype.torch): name for name, dtype in DTYPES.items()}
_ENTRY_BYTES = 1024  # of a header that are set aside for a tensor and what the metadata says of it
_AT_ONCE = 1 << 26  # bytes

# What the gguf library can quantise to; it only reads the K-quants.
GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
_ARCHITECTURE = "krea2"
_SMALL = 1024  # elements up to which a tensor stays float32


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` for a file or folder, which is renamed to `path` when the `with` block ends without an
    error, and removed otherwise. Raises `CheckpointError` if it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or f"{error}: the disk may be full"  # which is all that numpy says
        raise CheckpointError.of(path, f"cannot be written: {reason}") from None
    except CheckpointError as error:  # of a file in the folder, under the name that it was to get
        error.message = error.message.replace(str(temporary), str(path))
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # of a folder, or of what is not there
            temporary.unlink()


@contextmanager
def safetensors_writer(path: Path, most_tensors: int) -> Iterator[SafetensorsWriter]:
    """Write a safetensors file of up to `most_tensors`, there when the `with` block ends. Raises as `written_whole`."""
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


def write_gguf(
    path: Path, shapes: Mapping[str, tuple[int, ...]], qtype: str, read: Callable[[str], torch.Tensor]
) -> None:
    """Write a GGUF file, by llama.cpp's own library, of the CPU tensors that `read` gives by name, one at a time.

    Matrices are written as `qtype`, one of `GGUF_TYPES`; vectors, tensors of at most 1,024 elements and matrices whose
    columns do not fit the type's blocks as F32, as the usual converters do it. Raises as `written_whole`.
    """
    types = {name: _type(shape, GGMLQuantizationType[qtype]) for name, shape in shapes.items()}
    with written_whole(path) as temporary, closing(GGUFWriter(temporary, _ARCHITECTURE)) as writer:
        for name, shape in shapes.items():
            block, block_bytes = GGML_QUANT_SIZES[types[name]]
            size = math.prod(shape) // block * block_bytes
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in shapes:
            writer.write_tensor_data(quantize(read(name).float().contiguous().numpy(), types[name]))


def _type(shape: tuple[int, ...], wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    block, _ = GGML_QUANT_SIZES[wanted]
    if len(shape) < 2 or math.prod(shape) <= _SMALL or shape[-1] % block:
        return GGMLQuantizationType.F32
    return wanted
