"""Quantised matrices whose scales, one for each block of columns in a row, lie in the tiles that tensor cores read."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from engine.checkpoint.files.stored import count, covering, whole
from engine.checkpoint.quantized import number_formats as numbers
from engine.checkpoint.quantized.scaled import Layer, QuantizedMatrix

if TYPE_CHECKING:
    import torch


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
