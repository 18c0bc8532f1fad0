"""Quantised tensors as ComfyUI and its converters store them: values, and scales in tensors of their own.

Slices are decoded from what they need of the file: whole rows of scales, and the blocks of columns that cover them.
Everything is dequantised in float32.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engine.checkpoint.files.stored import (
    FLOAT_BYTES,
    Bounds,
    Header,
    PlainTensor,
    StoredTensor,
    TensorFile,
    count,
    whole,
)
from engine.checkpoint.quantized.metadata import FLOAT8_E4M3, FLOAT8_E5M2, QuantizationMetadata
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import torch

FLOAT8_FORMATS = {"F8_E4M3": FLOAT8_E4M3, "F8_E5M2": FLOAT8_E5M2}  # of weights without metadata, by dtype


@dataclass(frozen=True)
class Layer:
    """A quantised weight and what belongs to it.

    weight: its name in the file. companions: the names in the file of its scales and so on, by kind (`weight_scale`).
    """

    file: TensorFile
    weight: str
    companions: Mapping[str, str]
    metadata: QuantizationMetadata

    def header(self, kind: str) -> Header:
        """Return the header of a companion. Raises `CheckpointError` if there is none."""
        if kind not in self.companions:
            problem = f"has the format {self.metadata.format}, for which its {kind} is missing"
            raise CheckpointError.of(self.file.path, problem, name=self.weight)
        return self.file.headers[self.companions[kind]]

    def read(self, kind: str, bounds: Bounds) -> torch.Tensor:
        """Read a slice of a companion as it is stored."""
        return self.file.read(self.companions[kind], bounds)

    def wrong(self, kind: str, expected: object) -> CheckpointError:
        """Return what to raise for a companion, or the weight itself, of another dtype or shape than expected."""
        name = self.weight if kind == "weight" else self.companions[kind]
        (shape, dtype), problem = self.file.headers[name], f"does not fit the format {self.metadata.format}"
        return CheckpointError.of(self.file.path, problem, name=name, expected=expected, found=f"{dtype} {shape}")

    def checked_scales(self, kind: str, scales: torch.Tensor) -> torch.Tensor:
        """Return scales in float32. Raises `CheckpointError` unless all are finite and none is negative."""
        wide = scales.float()
        if not bool(((wide >= 0) & wide.isfinite()).all()):
            problem = "holds scales that are negative or not finite"
            raise CheckpointError.of(self.file.path, problem, name=self.companions[kind])
        return wide


class QuantizedMatrix(StoredTensor):
    """A matrix whose columns can be decoded a block at a time.

    dtypes: that the weight may be stored as. packed: columns in an element. companions: kinds that the format knows.
    """

    dtypes: ClassVar[tuple[str, ...]]
    packed: ClassVar[int] = 1
    companions: ClassVar[tuple[str, ...]] = ("weight_scale",)

    def __init__(self, layer: Layer, block: int = 1) -> None:
        """block: in columns. Raises `CheckpointError` if the headers do not fit the format."""
        self.file, self.name, self.format = layer.file.path, layer.weight, layer.metadata.format
        self.full_precision = layer.metadata.full_precision
        self._layer, self._block = layer, block
        header = layer.file.headers[layer.weight]
        if header.dtype not in self.dtypes or len(header.shape) != 2:
            raise layer.wrong("weight", f"a matrix of {' or '.join(self.dtypes)}")
        self.shape = (header.shape[0], header.shape[1] * self.packed)
        if self.shape[1] % block:
            problem, expected = f"does not fit the format {self.format}", f"a multiple of {block} columns"
            raise CheckpointError.of(self.file, problem, name=self.name, expected=expected, found=self.shape[1])
        for kind, name in layer.companions.items():
            if kind not in (*self.companions, "input_scale", "comfy_quant"):
                raise CheckpointError.of(self.file, f"is not known for a weight of the format {self.format}", name=name)

    def size(self, bounds: Bounds) -> int:
        rows, columns = bounds
        covering = self._covering(columns)
        return count((rows, covering)) // self.packed + self._scales_size(rows, covering)

    def read(self, bounds: Bounds) -> torch.Tensor:
        rows, columns = bounds
        covering = self._covering(columns)
        values = self._decode(rows, covering)
        return values[:, columns.start - covering.start : columns.stop - covering.start]

    def _covering(self, columns: slice) -> slice:
        """The columns of the whole blocks that these lie in."""
        return slice(columns.start // self._block * self._block, -(-columns.stop // self._block) * self._block)

    def _stored(self, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, columns / packed) as in the file."""
        stored = slice(columns.start // self.packed, columns.stop // self.packed)
        return self._layer.file.read(self.name, (rows, stored))

    @abstractmethod
    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, columns) float32. The columns are whole blocks."""

    @abstractmethod
    def _scales_size(self, rows: slice, columns: slice) -> int:
        """Bytes of the companions that `_decode` reads."""


class RowScaledMatrix(QuantizedMatrix):
    """A matrix with one scale, or one for each of its rows."""

    def __init__(self, layer: Layer, block: int = 1) -> None:
        super().__init__(layer, block)
        rows, header = self.shape[0], layer.header("weight_scale")
        if header.dtype not in FLOAT_BYTES or header.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
            raise layer.wrong("weight_scale", f"floats, one or ({rows}, 1)")
        self._scale_bounds, self._scale_bytes = whole(header.shape), FLOAT_BYTES[header.dtype]
        self._has_one_scale = math.prod(header.shape) == 1

    def _scales(self, rows: slice) -> torch.Tensor:
        """(rows, 1) float32."""
        bounds = self._scale_bounds if self._has_one_scale else (rows, *self._scale_bounds[1:])
        scales = self._layer.checked_scales("weight_scale", self._layer.read("weight_scale", bounds))
        return scales.reshape(-1, 1).expand(rows.stop - rows.start, 1)

    def _scales_size(self, rows: slice, columns: slice) -> int:
        return self._scale_bytes * (1 if self._has_one_scale else rows.stop - rows.start)


class E5m2Matrix(RowScaledMatrix):
    """float8_e5m2 values times their scales."""

    dtypes = ("F8_E5M2",)

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        return self._stored(rows, columns).float() * self._scales(rows)


class Fp8Matrix(E5m2Matrix):
    """The same of float8_e4m3fn, which a rank can keep as it is."""

    dtypes = ("F8_E4M3",)
    weight_format = "fp8"

    def read_eight_bit(self, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        return self._stored(*bounds), self._scales(bounds[0]).contiguous()


class Fp8Cast(PlainTensor):
    """A tensor of any shape that was cast to fp8 without a scale."""

    def __init__(self, file: TensorFile, name: str, *, full_precision: bool) -> None:
        super().__init__(file, name)
        self.format, self.full_precision = FLOAT8_FORMATS[self.format], full_precision
        self.weight_format = "fp8" if self.format == FLOAT8_E4M3 and len(self.shape) == 2 else "float"

    def size(self, bounds: Bounds) -> int:
        return count(bounds)

    def read(self, bounds: Bounds) -> torch.Tensor:
        return self._file.read(self.name, bounds).float()

    def read_eight_bit(self, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        return self._file.read(self.name, bounds), torch.ones((bounds[0].stop - bounds[0].start, 1))


class Int8Matrix(RowScaledMatrix):
    """int8_tensorwise values times their scales; the columns perhaps rotated, a group of them at a time."""

    dtypes = ("I8",)

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer, layer.metadata.group if layer.metadata.rotated else 1)

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        values = self._integers(rows, columns) * self._scales(rows)
        if self._block == 1:
            return values
        from engine.checkpoint.quantized.number_formats import rotate_groups

        return rotate_groups(values, self._block)

    def _integers(self, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, columns) float32, without scales."""
        return self._stored(rows, columns).float()


class W4A4Matrix(Int8Matrix):
    """convrot_w4a4: rotated, then rounded to signed 4-bit integers; the low nibble is the even column."""

    packed = 2

    def _integers(self, rows: slice, columns: slice) -> torch.Tensor:
        from engine.checkpoint.quantized.number_formats import INT4, unpack_nibbles

        return unpack_nibbles(self._stored(rows, columns), INT4, high_first=False)
