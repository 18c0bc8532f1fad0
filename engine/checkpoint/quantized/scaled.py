"""Quantised tensors as ComfyUI and its converters store them: values, and scales in tensors of their own.

A slice is decoded from the blocks of columns that cover it, and the scales of its rows.
Everything is dequantised in float32.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from engine.checkpoint.files.stored import (
    FLOAT_BYTES,
    Bounds,
    Header,
    PlainTensor,
    StoredTensor,
    TensorFile,
    count,
    covering,
    whole,
)
from engine.checkpoint.quantized import number_formats as numbers
from engine.checkpoint.quantized.metadata import FLOAT8_E4M3, FLOAT8_E5M2, QuantizationMetadata
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import torch

FLOAT8_FORMATS = {"F8_E4M3": FLOAT8_E4M3, "F8_E5M2": FLOAT8_E5M2}  # of weights without metadata, by dtype


class Layer(NamedTuple):
    """A quantised weight. weight: its name in the file. companions: the names in the file of its scales and so on, by
    kind (`weight_scale`)."""

    file: TensorFile
    weight: str
    companions: Mapping[str, str]
    metadata: QuantizationMetadata


class QuantizedMatrix(StoredTensor):
    """A matrix whose columns can be decoded a block at a time.

    dtypes: those the weight may be stored as. packed: columns in an element. block: in columns. kinds: of companions
    that the format knows: its scales and so on.
    """

    dtypes: ClassVar[tuple[str, ...]]
    packed: ClassVar[int] = 1
    block: int = 1
    kinds: ClassVar[tuple[str, ...]] = ("weight_scale",)

    def __init__(self, layer: Layer) -> None:
        """Check the headers. Raises `CheckpointError` if they do not fit the format."""
        self._file, self.name, self._companions, metadata = layer
        self.file, self.format, self.full_precision = self._file.path, metadata.format, metadata.full_precision
        self.shape = self._find_shape()
        if self.shape[1] % self.block:
            raise self._wrong(self.name, f"a multiple of {self.block} columns", self.shape[1])
        for kind, companion in self._companions.items():
            if kind not in (*self.kinds, "input_scale", "comfy_quant"):
                problem = f"is not known for a weight of the format {self.format}"
                raise CheckpointError.of(self.file, problem, name=companion)

    def _find_shape(self) -> tuple[int, int]:
        """(rows, columns) of the matrix, from the weight's header."""
        shape, dtype = self._file.headers[self.name]
        if dtype not in self.dtypes or len(shape) != 2:
            raise self._wrong(self.name, f"a matrix of {' or '.join(self.dtypes)}")
        return shape[0], shape[1] * self.packed

    def size(self, bounds: Bounds) -> int:
        rows, columns = bounds
        covered = covering(columns, self.block)
        return count((rows, covered)) // self.packed + self._scales_size(rows, covered)

    def read(self, bounds: Bounds) -> torch.Tensor:
        rows, columns = bounds
        covered = covering(columns, self.block)
        values = self._decode(rows, covered)
        return values[:, columns.start - covered.start : columns.stop - covered.start]

    @abstractmethod
    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, columns) float32. The columns are whole blocks."""

    def _numbers(self, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, columns) float32, not yet scaled."""
        return self._stored(rows, columns).float()

    @abstractmethod
    def _scales_size(self, rows: slice, columns: slice) -> int:
        """Bytes of the companions that `_decode` reads."""

    def _stored(self, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, columns / packed) as in the file."""
        stored = slice(columns.start // self.packed, columns.stop // self.packed)
        return self._file.read(self.name, (rows, stored))

    def _header(self, kind: str) -> Header:
        """Of a companion. Raises `CheckpointError` if there is none."""
        if kind not in self._companions:
            problem = f"has the format {self.format}, for which its {kind} is missing"
            raise CheckpointError.of(self.file, problem, name=self.name)
        return self._file.headers[self._companions[kind]]

    def _companion(self, kind: str, bounds: Bounds) -> torch.Tensor:
        """A slice of a companion as it is stored."""
        return self._file.read(self._companions[kind], bounds)

    def _checked(self, kind: str, scales: torch.Tensor) -> torch.Tensor:
        """Scales in float32. Raises `CheckpointError` unless all are finite and none is negative."""
        wide = scales.float()
        if not bool(((wide >= 0) & wide.isfinite()).all()):
            problem = "holds scales that are negative or not finite"
            raise CheckpointError.of(self.file, problem, name=self._companions[kind])
        return wide

    def _float_bytes(self, kind: str, shapes: tuple[tuple[int, ...], ...], allowed: str) -> int:
        """Bytes of an element of a companion, which must be floats in one of these shapes."""
        shape, dtype = self._header(kind)
        if dtype not in FLOAT_BYTES or shape not in shapes:
            raise self._wrong(self._companions[kind], allowed)
        return FLOAT_BYTES[dtype]

    def _wrong(self, name: str, expected: str, found: object = None) -> CheckpointError:
        """What to raise for a tensor of another dtype or shape than expected."""
        shape, dtype = self._file.headers[name]
        problem = f"does not fit the format {self.format}"
        return CheckpointError.of(self.file, problem, name=name, expected=expected, found=found or f"{dtype} {shape}")


class RowScaledMatrix(QuantizedMatrix):
    """A matrix with one scale, or one for each of its rows. scale: the kind of the companion that has them."""

    scale: ClassVar[str] = "weight_scale"

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        rows, allowed = self.shape[0], f"floats, one or ({self.shape[0]}, 1)"
        self._scale_bytes = self._float_bytes(self.scale, ((), (1,), (1, 1), (rows,), (rows, 1)), allowed)
        self._scale_bounds = whole(self._header(self.scale).shape)
        self._has_one_scale = count(self._scale_bounds) == 1

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        return self._numbers(rows, columns) * self._scales(rows)

    def _scales(self, rows: slice) -> torch.Tensor:
        """(rows, 1) float32."""
        bounds = self._scale_bounds if self._has_one_scale else (rows, *self._scale_bounds[1:])
        scales = self._checked(self.scale, self._companion(self.scale, bounds))
        return scales.reshape(-1, 1).expand(rows.stop - rows.start, 1)

    def _scales_size(self, rows: slice, columns: slice) -> int:
        return self._scale_bytes * (1 if self._has_one_scale else rows.stop - rows.start)


class E5m2Matrix(RowScaledMatrix):
    """float8_e5m2 values times their scales."""

    dtypes = ("F8_E5M2",)


class Fp8Matrix(RowScaledMatrix):
    """float8_e4m3fn values times their scales, which a rank can keep as they are."""

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
        self._rotated = layer.metadata.rotated
        self.block = layer.metadata.group if self._rotated else self.packed
        super().__init__(layer)

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        values = super()._decode(rows, columns)
        return numbers.rotate_groups(values, self.block) if self._rotated else values


class W4A4Matrix(Int8Matrix):
    """convrot_w4a4 and int4_tensorwise: perhaps rotated, then rounded to signed 4-bit integers, of which the low nibble
    is the even column (https://github.com/Comfy-Org/comfy-kitchen, `backends/eager/convrot_w4a4.py`)."""

    packed = 2

    def _numbers(self, rows: slice, columns: slice) -> torch.Tensor:
        return numbers.unpack_nibbles(self._stored(rows, columns), numbers.INT4, high_first=False)
