"""One tensor of a checkpoint, as its file stores it: plain numbers, or quantised in one of the ways that people use.

Pure Python until something is read: `krea2 info` and the front-end look at headers without waiting for torch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from engine.errors import CheckpointError, Krea2Error

if TYPE_CHECKING:
    import numpy as np
    import torch

Bounds = tuple[slice, ...]  # one slice a dimension, with start and stop, of step one

# How a rank keeps a matrix in memory: in the model's dtype, as fp8 with a float32 scale a row, or as int8 with a
# float16 scale for every 32 columns of a row.
WeightFormat = Literal["float", "fp8", "int8"]
INT8_GROUP = 32  # columns

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # of an element, by dtype


def whole(shape: Iterable[int]) -> Bounds:
    """Return the bounds of all of a tensor of this shape."""
    return tuple(slice(0, length) for length in shape)


def count(bounds: Bounds) -> int:
    """Return the elements within the bounds."""
    return math.prod(bound.stop - bound.start for bound in bounds)


def covering(part: slice, multiple: int) -> slice:
    """Return the smallest slice that covers `part` and begins and ends at multiples."""
    return slice(part.start // multiple * multiple, -(-part.stop // multiple) * multiple)


class Header(NamedTuple):
    """What a file's header says of a tensor. dtype: as safetensors or ggml write it (BF16, F8_E4M3, Q4_K …)."""

    shape: tuple[int, ...]
    dtype: str


class TensorFile(ABC):
    """An open file of tensors, whose headers were checked when it was opened."""

    path: Path
    headers: Mapping[str, Header]
    metadata: Mapping[str, str]

    @abstractmethod
    def read(self, name: str, bounds: Bounds) -> torch.Tensor:
        """Read a slice as it is stored, to the CPU, in the shape of the bounds. It may be a view of the mapped file,
        which nobody may write to.

        Raises `CheckpointError`. Any thread may call it.
        """

    @abstractmethod
    def octets(self, name: str, part: slice | None = None) -> np.ndarray:
        """Copy a tensor's bytes as they lie in the file, or those in `part`: (bytes,) uint8. Needs no torch.

        Raises `CheckpointError`, also for a file that was cut short after it was opened.
        """

    @abstractmethod
    def close(self) -> None:
        """End reading. Tensors that were read stay valid."""


class StoredTensor(ABC):
    """A tensor under the shape that it is meant to have.

    file: what an error names. name: as in the file. format: what it is stored as, for people (BF16, float8_e4m3fn,
    Q4_K). weight_format: the smallest that it can be kept in without a loss; "float" for what is dequantised.
    full_precision: the file asks for products with this matrix in the model's dtype.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    format: str
    weight_format: WeightFormat = "float"
    full_precision: bool = False

    @abstractmethod
    def size(self, bounds: Bounds) -> int:
        """Return the bytes of the file that reading this slice takes."""

    @abstractmethod
    def read(self, bounds: Bounds) -> torch.Tensor:
        """Read the values of a slice, dequantised, in a float dtype, to the CPU. The shape is that of the bounds."""

    def not_finite(self, bounds: Bounds) -> Krea2Error | None:
        """Return why values of a slice are not finite, if that is not the file's fault."""
        return None

    def read_eight_bit(self, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        """Read values and scales of a slice of a matrix, in its `weight_format`. Not for "float".

        "fp8": (rows, columns) float8_e4m3fn, (rows, 1) float32. "int8": (rows, columns) int8, (rows, columns / 32)
        float16; columns begin and end at multiples of 32.
        """
        raise TypeError(f"{self.format} is not kept in 8 bits")


class PlainTensor(StoredTensor):
    """A tensor as its file has it: floats, one after the other. Of any other dtype only reading it is an error."""

    def __init__(self, file: TensorFile, name: str) -> None:
        self.file, self.name, (self.shape, self.format) = file.path, name, file.headers[name]
        self._file = file

    def size(self, bounds: Bounds) -> int:
        if self.format not in FLOAT_BYTES:
            problem = "has a dtype that cannot be read"
            raise CheckpointError.of(self.file, problem, name=self.name, expected="floats", found=self.format)
        return count(bounds) * FLOAT_BYTES[self.format]

    def read(self, bounds: Bounds) -> torch.Tensor:
        self.size(bounds)  # an error for what cannot be read
        return self._file.read(self.name, bounds)


class Reshaped(StoredTensor):
    """Another shape for the same numbers in the same order. Only whole tensors are read of the file."""

    def __init__(self, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
        self.file, self.name, self.format = tensor.file, tensor.name, tensor.format
        self.shape, self._tensor = shape, tensor

    def size(self, bounds: Bounds) -> int:
        return self._tensor.size(whole(self._tensor.shape))

    def read(self, bounds: Bounds) -> torch.Tensor:
        return self._tensor.read(whole(self._tensor.shape)).reshape(self.shape)[bounds]
