"""Writes safetensors and GGUF files tensor by tensor, so that a file may be larger than memory. Each is there when it
is whole, or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from engine.checkpoint.convert.k_quants import K_QUANTS, quantize_k
from engine.checkpoint.files.mapped_file import DTYPES
from engine.errors import CheckpointError

_NAMES = {getattr(torch, dtype.torch): name for name, dtype in DTYPES.items()}
_ENTRY_BYTES = 1024  # of a header that are set aside for a tensor and what the metadata says of it
_AT_ONCE = 1 << 26  # bytes

GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", *reversed(K_QUANTS))
# In place of a K-quant for columns that 256 does not divide: what llama.cpp takes, but for IQ4_NL, which nothing here
# writes, Q4_0, which is as large.
_INSTEAD = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_UNLIMITED = ("F32", "BF16")
_FLOATS = {"F32", "F16", "BF16"}
_LARGEST = 65504.0  # what float16 holds, in which the other types have scales and offsets
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


def gguf_types(shapes: Mapping[str, tuple[int, ...]], qtype: str, float32: Collection[str] = ()) -> dict[str, str]:
    """Return as what each tensor of these shapes is written, of `GGUF_TYPES`.

    Matrices as `qtype`; those whose columns a K-quant's blocks of 256 do not divide, as the type of blocks of 32 that
    llama.cpp takes for it. Those named in `float32`, vectors, tensors of at most 1,024 elements and matrices that fit
    no block are F32.
    """
    wanted = (qtype, _INSTEAD.get(qtype, qtype))
    return {name: "F32" if name in float32 else _type(shape, wanted) for name, shape in shapes.items()}


def describe_others(shapes: Mapping[str, tuple[int, ...]], qtype: str, float32: Collection[str] = ()) -> str | None:
    """Say how many matrices of these shapes do not become `qtype`, since its blocks do not fit, and what they are.
    float32: as for `gguf_types`; these count for none."""
    types = gguf_types(shapes, qtype)
    matrices = [types[name] for name, shape in shapes.items() if _is_matrix(shape) and name not in float32]
    others = Counter(kind for kind in matrices if kind != qtype)
    if not others:
        return None
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[qtype]]
    listed = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
    counted = f"{len(matrices) - others.total()} of {len(matrices)} matrices are {qtype}"
    return f"{counted}; the others, whose columns are no multiple of {block}: {listed}"


def write_gguf(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    qtype: str,
    read: Callable[[str], torch.Tensor],
    notes: Mapping[str, str] = {},
    *,
    float32: Collection[str] = (),
) -> None:
    """Write a GGUF file, by llama.cpp's own library, of the CPU tensors that `read` gives by name, one at a time, and
    with `notes` in its metadata.

    qtype: of `GGUF_TYPES`; which tensors become that, `gguf_types` says, which takes `float32`. Raises as
    `written_whole`, before anything is read if the disk has no room, and for numbers that a type cannot hold.
    """
    types = gguf_types(shapes, qtype, float32)
    sizes = {name: _bytes(shape, types[name]) for name, shape in shapes.items()}
    _check_room(path, sum(sizes.values()))
    with written_whole(path) as temporary, closing(GGUFWriter(temporary, _ARCHITECTURE)) as writer:
        for key, text in notes.items():
            writer.add_string(key, text)
        if not _FLOATS.issuperset(types.values()):
            writer.add_quantization_version(GGML_QUANT_VERSION)  # which GGUF's specification asks for
        for name, shape in shapes.items():
            raw = GGMLQuantizationType[types[name]]
            writer.add_tensor_info(name, shape, np.dtype(np.float32), sizes[name], raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in shapes:
            tensor = read(name)
            _check_numbers(path, name, tensor, types[name])
            writer.write_tensor_data(_quantized(tensor, types[name]))


def _type(shape: tuple[int, ...], wanted: Iterable[str]) -> str:
    if _is_matrix(shape):
        for name in wanted:
            if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[name]][0] == 0:
                return name
    return "F32"


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and math.prod(shape) > _SMALL


def _bytes(shape: tuple[int, ...], qtype: str) -> int:
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[qtype]]
    return math.prod(shape) // block * block_bytes


def _quantized(tensor: torch.Tensor, qtype: str) -> np.ndarray:
    if qtype in K_QUANTS:
        return quantize_k(tensor, qtype)
    return quantize(tensor.float().contiguous().numpy(), GGMLQuantizationType[qtype])


def _check_numbers(path: Path, name: str, tensor: torch.Tensor, qtype: str) -> None:
    """Quantised, what is not finite or too large would be other numbers."""
    if qtype in _UNLIMITED or not tensor.numel():
        return
    low, high = (value.item() for value in tensor.aminmax())
    if not (low >= -_LARGEST and high <= _LARGEST):  # NaN is neither
        expected = f"finite ones of at most {_LARGEST:.0f}, or f32 or bf16 for --weights"
        problem = f"cannot be {qtype}: holds other numbers than a float16 does"
        raise CheckpointError.of(path, problem, name=name, expected=expected, found=f"{low:.6g} to {high:.6g}")


def _check_room(path: Path, needed: int) -> None:
    """Quantising takes minutes, and the size is known before."""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return  # which the first write tells
    if 0 < free < needed:  # some network disks say 0
        problem = "cannot be written: the disk has too little room"
        raise CheckpointError.of(path, problem, expected=f"{needed / 1e9:.3g} GB", found=f"{free / 1e9:.3g} GB")
