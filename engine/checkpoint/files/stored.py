"""One tensor of a checkpoint, as its file stores it: plain numbers, or quantised in one of the ways that people use.

Pure Python until something is read: `krea2 info` and the front-end look at headers without waiting for torch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

Bounds = tuple[slice, ...]  # one slice a dimension, with start and stop, of step one

# How a rank keeps a matrix in memory: in the model's dtype, as fp8 with a float32 scale a row, or as int8 with a
# float16 scale for every 32 columns of a row.
WeightFormat = Literal["float", "fp8", "int8"]
INT8_GROUP = 32

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class Header(NamedTuple):
    """What a file's header says of a tensor. dtype: as safetensors or ggml write it (BF16, F8_E4M3, Q4_K …)."""

    shape: tuple[int, ...]
    dtype: str


class TensorFile(Protocol):
    """An open file of tensors, whose headers were checked when it was opened."""

    path: Path

    @property
    def headers(self) -> Mapping[str, Header]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def read(self, name: str, bounds: Bounds) -> torch.Tensor:
        """A slice as it is stored, on the CPU. It may be a view of the mapped file: nobody writes to it.

        Raises `CheckpointError`. Any thread may call it.
        """
        ...

    def octets(self, name: str, part: slice | None = None) -> np.ndarray:
        """A copy of a tensor's bytes, or of those in `part`, as they lie in the file, for who wants no torch.

        Raises `CheckpointError`, also for a file that was cut short after it was opened.
        """
        ...

    def close(self) -> None: ...


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
        """Bytes of the file that reading this slice takes."""

    @abstractmethod
    def read(self, bounds: Bounds) -> torch.Tensor:
        """The values of a slice, dequantised, in a float dtype, on the CPU."""

    def read_eight_bit(self, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and scales of a slice of a matrix, in its `weight_format`. Not for "float".

        "fp8": (rows, columns) float8_e4m3fn, (rows, 1) float32. "int8": (rows, columns) int8, (rows, columns / 32)
        float16; columns begin and end at multiples of 32.
        """
        raise TypeError(f"{self.format} is not kept in 8 bits")


class PlainTensor(StoredTensor):
    """Floating-point numbers, one after the other."""

    def __init__(self, file: TensorFile, name: str, shape: tuple[int, ...] | None = None) -> None:
        """shape: another one for the same number of elements; only whole tensors are read then."""
        header = file.headers[name]
        self.file, self.name, self.format = file.path, name, header.dtype
        self.shape = header.shape if shape is None else shape
        self._file, self._stored_shape = file, header.shape

    def size(self, bounds: Bounds) -> int:
        return math.prod(bound.stop - bound.start for bound in bounds) * FLOAT_BYTES[self.format]

    def read(self, bounds: Bounds) -> torch.Tensor:
        if self.shape == self._stored_shape:
            return self._file.read(self.name, bounds)
        whole = self._file.read(self.name, tuple(slice(0, length) for length in self._stored_shape))
        return whole.reshape(self.shape)[bounds]


class Reshaped(StoredTensor):
    """Another shape for the same numbers in the same order. Only whole tensors are read of the file."""

    def __init__(self, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
        self.file, self.name, self.format = tensor.file, tensor.name, tensor.format
        self.shape = shape
        self._tensor = tensor
        self._whole = tuple(slice(0, length) for length in tensor.shape)

    def size(self, bounds: Bounds) -> int:
        return self._tensor.size(self._whole)

    def read(self, bounds: Bounds) -> torch.Tensor:
        return self._tensor.read(self._whole).reshape(self.shape)[bounds]
