"""Quantised tensors as ComfyUI and its converters store them: values, and scales in tensors of their own.

Slices are decoded from what they need of the file: whole rows of scales, and the blocks of columns that cover them.
Everything is dequantised in float32.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from engine.checkpoint.files.stored import FLOAT_BYTES, Bounds, Header, StoredTensor, TensorFile
from engine.checkpoint.quantized.metadata import FLOAT8_E4M3, FLOAT8_E5M2, Mark
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import torch

FLOAT8_FORMATS = {"F8_E4M3": FLOAT8_E4M3, "F8_E5M2": FLOAT8_E5M2}  # of weights without a mark, by dtype


@dataclass(frozen=True)
class Layer:
    """A quantised weight and what belongs to it.

    weight: its name in the file. companions: the names in the file of its scales and so on, by kind (`weight_scale`).
    """

    file: TensorFile
    weight: str
    companions: Mapping[str, str]
    mark: Mark

    def header(self, kind: str) -> Header:
        """The header of a companion. Raises `CheckpointError` if there is none."""
        if kind not in self.companions:
            raise CheckpointError.of(
                self.file.path, f"is marked {self.mark.format}, for which its {kind} is missing", name=self.weight
            )
        return self.file.headers[self.companions[kind]]

    def read(self, kind: str, bounds: Bounds) -> torch.Tensor:
        return self.file.read(self.companions[kind], bounds)

    def wrong(self, kind: str, expected: object) -> CheckpointError:
        """What to raise for a companion, or the weight itself, of another dtype or shape than expected."""
        name = self.weight if kind == "weight" else self.companions[kind]
        header = self.file.headers[name]
        found = f"{header.dtype} {header.shape}"
        return CheckpointError.of(
            self.file.path, f"does not fit the format {self.mark.format}", name=name, expected=expected, found=found
        )


def checked_scales(layer: Layer, kind: str, scales: torch.Tensor) -> torch.Tensor:
    """The same in float32. Raises `CheckpointError` unless all are finite and none is negative."""
    wide = scales.float()
    if not bool(((wide >= 0) & wide.isfinite()).all()):
        raise CheckpointError.of(
            layer.file.path, "holds scales that are negative or not finite", name=layer.companions[kind]
        )
    return wide


class Scales(Protocol):
    """The `weight_scale` of a layer, whose header was checked."""

    def size(self, rows: slice) -> int:
        """Bytes of the file that reading those of some rows takes."""
        ...

    def read(self, rows: slice) -> torch.Tensor:
        """(rows, scales in a row)."""
        ...


class RowScales:
    """One scale for the matrix, or one for each of its rows."""

    def __init__(self, layer: Layer, rows: int) -> None:
        header = layer.header("weight_scale")
        if header.dtype not in FLOAT_BYTES or header.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
            raise layer.wrong("weight_scale", f"floats, one or ({rows}, 1)")
        self._layer, self._shape, self._bytes = layer, header.shape, FLOAT_BYTES[header.dtype]
        self._one = math.prod(header.shape) == 1

    def size(self, rows: slice) -> int:
        return self._bytes * (1 if self._one else rows.stop - rows.start)

    def read(self, rows: slice) -> torch.Tensor:
        """(rows, 1) float32."""
        bounds = tuple(slice(0, length) for length in self._shape)
        if not self._one:
            bounds = (rows, *bounds[1:])
        scales = checked_scales(self._layer, "weight_scale", self._layer.read("weight_scale", bounds))
        return scales.reshape(-1, 1).expand(rows.stop - rows.start, 1)


class QuantizedMatrix(StoredTensor):
    """A matrix whose columns can be decoded a block at a time.

    dtypes: that the weight may be stored as. packed: columns in an element. companions: kinds that the format knows.
    """

    dtypes: ClassVar[tuple[str, ...]]
    packed: ClassVar[int] = 1
    companions: ClassVar[tuple[str, ...]] = ("weight_scale",)
    _scales: Scales

    def __init__(self, layer: Layer, block: int = 1) -> None:
        """Raises `CheckpointError` if the headers do not fit the format. block: in columns."""
        self.file, self.name, self.format = layer.file.path, layer.weight, layer.mark.format
        self.full_precision = layer.mark.full_precision
        self._layer, self._block = layer, block
        header = layer.file.headers[layer.weight]
        if header.dtype not in self.dtypes or len(header.shape) != 2:
            raise layer.wrong("weight", f"a matrix of {' or '.join(self.dtypes)}")
        self.shape = (header.shape[0], header.shape[1] * self.packed)
        if self.shape[1] % block:
            raise CheckpointError.of(
                self.file,
                f"does not fit the format {self.format}",
                name=self.name,
                expected=f"a multiple of {block} columns",
                found=self.shape[1],
            )
        for kind, name in layer.companions.items():
            if kind not in self.companions and kind not in ("input_scale", "comfy_quant"):
                raise CheckpointError.of(self.file, f"is not known for a weight of the format {self.format}", name=name)

    def size(self, bounds: Bounds) -> int:
        rows, columns = bounds
        covering = self._covering(columns)
        stored = (rows.stop - rows.start) * (covering.stop - covering.start) // self.packed
        return stored + self._scales_size(rows, covering)

    def read(self, bounds: Bounds) -> torch.Tensor:
        rows, columns = bounds
        covering = self._covering(columns)
        values = self._decode(rows, covering)
        return values[:, columns.start - covering.start : columns.stop - covering.start]

    def _covering(self, columns: slice) -> slice:
        return slice(columns.start // self._block * self._block, -(-columns.stop // self._block) * self._block)

    def _stored(self, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, columns / packed) as in the file."""
        return self._layer.file.read(
            self.name, (rows, slice(columns.start // self.packed, columns.stop // self.packed))
        )

    @abstractmethod
    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, columns) float32. The columns are whole blocks."""

    def _scales_size(self, rows: slice, columns: slice) -> int:
        """Bytes of the companions that `_decode` reads."""
        return self._scales.size(rows)


class E5m2Matrix(QuantizedMatrix):
    """float8_e5m2, with one scale or a scale a row."""

    dtypes = ("F8_E5M2",)

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self._scales = RowScales(layer, self.shape[0])

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        return self._stored(rows, columns).float() * self._scales.read(rows)


class Fp8Matrix(E5m2Matrix):
    """float8_e4m3fn: the same, and computed with as it is."""

    dtypes = ("F8_E4M3",)
    weight_format = "fp8"

    def read_eight_bit(self, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        return self._stored(*bounds), self._scales.read(bounds[0]).contiguous()


class Fp8Cast(StoredTensor):
    """A tensor of any shape that was cast to fp8 without a scale."""

    def __init__(self, file: TensorFile, name: str, *, full_precision: bool = False) -> None:
        header = file.headers[name]
        self.file, self.name, self.shape, self.format = file.path, name, header.shape, FLOAT8_FORMATS[header.dtype]
        self.weight_format = "fp8" if self.format == FLOAT8_E4M3 and len(self.shape) == 2 else "float"
        self.full_precision = full_precision
        self._file = file

    def size(self, bounds: Bounds) -> int:
        return math.prod(bound.stop - bound.start for bound in bounds)

    def read(self, bounds: Bounds) -> torch.Tensor:
        return self._file.read(self.name, bounds).float()

    def read_eight_bit(self, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        rows = bounds[0].stop - bounds[0].start
        return self._file.read(self.name, bounds), torch.ones((rows, 1))


class Int8Matrix(QuantizedMatrix):
    """int8_tensorwise: one scale or a scale a row; the columns perhaps rotated, `group` of them at a time."""

    dtypes = ("I8",)

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer, layer.mark.group if layer.mark.rotated else 1)
        self._scales = RowScales(layer, self.shape[0])

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        values = self._integers(rows, columns) * self._scales.read(rows)
        if self._block == 1:
            return values
        from engine.checkpoint.quantized.number_formats import rotate_groups

        return rotate_groups(values, self._block)

    def _integers(self, rows: slice, columns: slice) -> torch.Tensor:
        return self._stored(rows, columns).float()


class W4A4Matrix(Int8Matrix):
    """convrot_w4a4: rotated, then rounded to signed 4-bit integers; the low nibble is the even column."""

    packed = 2

    def _integers(self, rows: slice, columns: slice) -> torch.Tensor:
        from engine.checkpoint.quantized.number_formats import INT4, unpack_nibbles

        return unpack_nibbles(self._stored(rows, columns), INT4, high_first=False)


class UnreadableTensor(StoredTensor):
    """Anything that is not a number format known here. Only reading it is an error."""

    def __init__(self, file: TensorFile, name: str) -> None:
        header = file.headers[name]
        self.file, self.name, self.shape, self.format = file.path, name, header.shape, header.dtype

    def size(self, bounds: Bounds) -> int:
        raise self._error()

    def read(self, bounds: Bounds) -> torch.Tensor:
        raise self._error()

    def _error(self) -> CheckpointError:
        return CheckpointError.of(
            self.file, "has a dtype that cannot be read", name=self.name, expected="floats", found=self.format
        )
