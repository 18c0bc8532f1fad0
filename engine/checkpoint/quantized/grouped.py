"""Quantised matrices with a scale for each square of rows and columns, or for each group of columns in a row, in
reading order."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from engine.checkpoint.files.stored import FLOAT_BYTES, count
from engine.checkpoint.quantized import number_formats as numbers
from engine.checkpoint.quantized.scaled import Layer, QuantizedMatrix
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_SQUARES = tuple(1 << power for power in range(3, 13))  # sides that are looked for where none is said


def square_of(shape: tuple[int, ...], scales: tuple[int, ...]) -> int | None:
    """Return the side of the squares, a power of two, of which a matrix of this shape has so many each way; None if
    none fits. Those at the lower and right edges may be cut. No two fit, unless all the matrix is one square."""
    if not len(shape) == len(scales) == 2:
        return None
    return next((side for side in _SQUARES if scales == _squares(shape, side)), None)


def _squares(shape: tuple[int, ...], side: int) -> tuple[int, ...]:
    return tuple(-(-length // side) for length in shape)


class SquareScaledMatrix(QuantizedMatrix):
    """A matrix with a scale for each square, by which its values are multiplied: as convert_to_quant writes them
    (https://github.com/silveroxides/convert_to_quant, `comfy/quant_ops.py`), and DeepSeek's fp8 files and those of
    compressed-tensors have them."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        shape, dtype = self._header("weight_scale")
        side = layer.metadata.block or square_of(self.shape, shape)
        if side is None or dtype not in FLOAT_BYTES or shape != _squares(self.shape, side):
            squares = "squares" if side is None else f"squares of {side}"
            raise self._wrong(self._companions["weight_scale"], f"floats, one for each of the weight's {squares}")
        self._side, self._scale_bytes = side, FLOAT_BYTES[dtype]

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        values, scales = self._numbers(rows, columns), self._companion("weight_scale", self._squares(rows, columns))
        by_column = self._checked("weight_scale", scales).repeat_interleave(self._side, dim=1)
        by_column = by_column.narrow(1, columns.start % self._side, columns.stop - columns.start)
        start = rows.start // self._side * self._side - rows.start
        for scale in by_column:
            values[max(0, start) : start + self._side] *= scale
            start += self._side
        return values

    def _scales_size(self, rows: slice, columns: slice) -> int:
        return count(self._squares(rows, columns)) * self._scale_bytes

    def _squares(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Those that a slice touches."""
        first, second = (slice(part.start // self._side, -(-part.stop // self._side)) for part in (rows, columns))
        return first, second


class Fp8Squares(SquareScaledMatrix):
    """float8_e4m3fn values."""

    dtypes = ("F8_E4M3",)


class Int8Squares(SquareScaledMatrix):
    """Signed bytes."""

    dtypes = ("I8",)


class W4A8Matrix(QuantizedMatrix):
    """asym_w4a8_int8: rotated, then 4-bit codes, of which the low nibble is the even column. What a code stands for,
    times the scale of its group of columns, is rounded to a signed byte; that times the row's scale, plus perhaps a
    correction for each group, is the value (https://github.com/Comfy-Org/comfy-kitchen, `backends/eager/w4a8_int8.py`).
    """

    dtypes = ("I8",)
    packed = 2
    kinds = ("weight_s_rel", "weight_s_channel", "weight_codebook", "weight_correction")
    _GROUP: ClassVar[int] = 16  # columns, where the metadata does not say it
    _LARGEST: ClassVar[int] = 127

    def __init__(self, layer: Layer) -> None:
        self.block = layer.metadata.group
        super().__init__(layer)
        self._group = layer.metadata.block or self._GROUP
        if self.block % self._group:
            raise self._wrong(self.name, f"groups that divide {self.block} columns", f"groups of {self._group}")
        rows, columns = self.shape
        sizes: dict[str, int] = {}
        groups = columns // self._group
        shape, dtype = self._header("weight_s_rel")
        if shape != (rows, groups) or dtype not in ("F8_E4M3", "F32"):
            raise self._wrong(self._companions["weight_s_rel"], f"F8_E4M3 or F32 {(rows, groups)}")
        sizes["weight_s_rel"] = 1 if dtype == "F8_E4M3" else 4
        others: dict[str, tuple[tuple[int, ...], ...]] = {
            "weight_s_channel": ((rows,), (rows, 1)),
            "weight_codebook": ((16,),),
            "weight_correction": ((groups, rows),),
        }
        for kind, shapes in others.items():
            if kind == "weight_s_channel" or kind in self._companions:
                sizes[kind] = self._float_bytes(kind, shapes, f"floats {shapes[0]}")
        self._sizes = sizes

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        groups = slice(columns.start // self._group, columns.stop // self._group)
        codes = tuple(map(float, range(-8, 8)))
        if "weight_codebook" in self._sizes:
            codes = tuple(self._finite("weight_codebook", (slice(0, 16),)).tolist())
        values = numbers.unpack_nibbles(self._stored(rows, columns), codes, high_first=False)
        by_group = values.unflatten(1, (-1, self._group))
        by_group *= self._checked("weight_s_rel", self._companion("weight_s_rel", (rows, groups))).unsqueeze(-1)
        by_group.round_().clamp_(-self._LARGEST, self._LARGEST)
        channels = self._header("weight_s_channel").shape[1:]
        scales = self._companion("weight_s_channel", (rows, *(slice(0, length) for length in channels)))
        by_group *= self._checked("weight_s_channel", scales).reshape(-1, 1, 1)
        if "weight_correction" in self._sizes:
            by_group += self._finite("weight_correction", (groups, rows)).t().unsqueeze(-1)
        return numbers.rotate_groups(by_group.flatten(1), self.block)

    def _finite(self, kind: str, bounds: tuple[slice, ...]) -> torch.Tensor:
        """A companion's slice in float32."""
        wide = self._companion(kind, bounds).float()
        if not bool(wide.isfinite().all()):
            raise CheckpointError.of(self.file, "holds values that are not finite", name=self._companions[kind])
        return wide

    def _scales_size(self, rows: slice, columns: slice) -> int:
        height, groups = count((rows,)), (columns.stop - columns.start) // self._group
        counts = {
            "weight_s_rel": height * groups,
            "weight_s_channel": height,
            "weight_codebook": 16,
            "weight_correction": height * groups,
        }
        return sum(size * counts[kind] for kind, size in self._sizes.items())
