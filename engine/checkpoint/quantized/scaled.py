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
        shape, dtype = self._file.headers[self.name]
        if dtype not in self.dtypes or len(shape) != 2:
            raise self._wrong(self.name, f"a matrix of {' or '.join(self.dtypes)}")
        self.shape = (shape[0], shape[1] * self.packed)
        if self.shape[1] % self.block:
            raise self._wrong(self.name, f"a multiple of {self.block} columns", self.shape[1])
        for kind, companion in self._companions.items():
            if kind not in (*self.kinds, "input_scale", "comfy_quant"):
                problem = f"is not known for a weight of the format {self.format}"
                raise CheckpointError.of(self.file, problem, name=companion)

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
    """A matrix with one scale, or one for each of its rows."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        rows, allowed = self.shape[0], f"floats, one or ({self.shape[0]}, 1)"
        self._scale_bytes = self._float_bytes("weight_scale", ((), (1,), (1, 1), (rows,), (rows, 1)), allowed)
        self._scale_bounds = whole(self._header("weight_scale").shape)
        self._has_one_scale = count(self._scale_bounds) == 1

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        return self._numbers(rows, columns) * self._scales(rows)

    def _scales(self, rows: slice) -> torch.Tensor:
        """(rows, 1) float32."""
        bounds = self._scale_bounds if self._has_one_scale else (rows, *self._scale_bounds[1:])
        scales = self._checked("weight_scale", self._companion("weight_scale", bounds))
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
        self.block = layer.metadata.group if layer.metadata.rotated else 1
        super().__init__(layer)

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        values = super()._decode(rows, columns)
        return values if self.block == 1 else numbers.rotate_groups(values, self.block)


class W4A4Matrix(Int8Matrix):
    """convrot_w4a4: rotated, then rounded to signed 4-bit integers; the low nibble is the even column."""

    packed = 2

    def _numbers(self, rows: slice, columns: slice) -> torch.Tensor:
        return numbers.unpack_nibbles(self._stored(rows, columns), numbers.INT4, high_first=False)


class BlockScaledMatrix(QuantizedMatrix):
    """A matrix with a scale of one byte for each block of columns in a row, in the tiled order that tensor cores read.

    scale_dtypes: those the scales may be stored as.
    """

    scale_dtypes: ClassVar[tuple[str, ...]]

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        shape, dtype = self._header("weight_scale")
        expected = numbers.tiled_shape(self.shape[0], self.shape[1] // self.block)
        if dtype not in self.scale_dtypes or shape != expected:
            raise self._wrong(self._companions["weight_scale"], f"{' or '.join(self.scale_dtypes)} {expected}")
        self._tiled_columns = expected[1]

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        values = self._numbers(rows, columns)
        values.unflatten(1, (-1, self.block)).mul_(self._scales(rows, columns).unsqueeze(-1))
        return values

    @abstractmethod
    def _scales(self, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, blocks) float32."""

    def _stored_scales(self, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, blocks) as stored, in reading order. A tile's columns are not a slice of what is stored, so the whole
        width of the tiles is read."""
        import torch

        tiles = covering(rows, numbers.TILE_ROWS)
        stored = self._companion("weight_scale", (tiles, slice(0, self._tiled_columns)))
        scales = numbers.untile_scales(stored.view(torch.uint8))[rows.start - tiles.start : rows.stop - tiles.start]
        return scales[:, columns.start // self.block : columns.stop // self.block].view(stored.dtype)

    def _scales_size(self, rows: slice, columns: slice) -> int:
        return count((covering(rows, numbers.TILE_ROWS),)) * self._tiled_columns


class Mxfp8Matrix(BlockScaledMatrix):
    """e4m3 values, and for every 32 columns a power of two."""

    dtypes = ("F8_E4M3",)
    scale_dtypes = ("U8", "F8_E8M0")
    block = 32

    def _scales(self, rows: slice, columns: slice) -> torch.Tensor:
        import torch

        return self._checked("weight_scale", self._stored_scales(rows, columns).view(torch.float8_e8m0fnu))


class Nvfp4Matrix(BlockScaledMatrix):
    """E2M1 values, two in a byte with the even column in the high nibble, an e4m3 scale for every 16 columns, and one
    float32 scale; perhaps a factor for each column, by which the layer's input is to be multiplied."""

    dtypes = ("U8",)
    scale_dtypes = ("F8_E4M3",)
    packed, block = 2, 16
    kinds = ("weight_scale", "weight_scale_2", "pre_quant_scale")

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self._scale_bytes = self._float_bytes("weight_scale_2", ((), (1,)), "floats, 1 in number")
        self._factor_bytes, columns = 0, self.shape[1]  # a column
        if "pre_quant_scale" in self._companions:
            self._factor_bytes = self._float_bytes("pre_quant_scale", ((columns,),), f"floats, {columns} in number")

    def _numbers(self, rows: slice, columns: slice) -> torch.Tensor:
        return numbers.unpack_nibbles(self._stored(rows, columns), numbers.E2M1, high_first=True)

    def _scales(self, rows: slice, columns: slice) -> torch.Tensor:
        one = self._companion("weight_scale_2", whole(self._header("weight_scale_2").shape))
        blocks = self._checked("weight_scale", self._stored_scales(rows, columns))
        return blocks * self._checked("weight_scale_2", one)

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        values = super()._decode(rows, columns)
        if self._factor_bytes:
            values *= self._checked("pre_quant_scale", self._companion("pre_quant_scale", (columns,)))
        return values

    def _scales_size(self, rows: slice, columns: slice) -> int:
        factors = self._factor_bytes * (columns.stop - columns.start)
        return super()._scales_size(rows, columns) + self._scale_bytes + factors
