"""Block-scaled formats: mxfp8 and nvfp4, whose scales are stored in the tiled order that tensor cores read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engine.checkpoint.files.stored import FLOAT_BYTES
from engine.checkpoint.quantized.scale_tiles import TILE_ROWS, round_up, tiled_shape
from engine.checkpoint.quantized.scaled import Layer, QuantizedMatrix, checked_scales

if TYPE_CHECKING:
    import torch


class TiledScales:
    """One byte for each block of columns in a row. Reading takes the whole width of the 128-row tiles that are needed:
    a tile's columns are not a slice of what is stored."""

    def __init__(self, layer: Layer, dtypes: tuple[str, ...], rows: int, columns: int) -> None:
        self._layer, self._columns = layer, columns
        self._shape = tiled_shape(rows, columns)
        header = layer.header("weight_scale")
        if header.dtype not in dtypes or header.shape != self._shape:
            raise layer.wrong("weight_scale", f"{' or '.join(dtypes)} {self._shape}")

    def size(self, rows: slice) -> int:
        tiles = self._tiles(rows)
        return (tiles.stop - tiles.start) * self._shape[1]

    def read(self, rows: slice) -> torch.Tensor:
        """(rows, columns) as stored, in reading order."""
        import torch

        from engine.checkpoint.quantized.number_formats import untile_scales

        tiles = self._tiles(rows)
        stored = self._layer.read("weight_scale", (tiles, slice(0, self._shape[1])))
        scales = untile_scales(stored.view(torch.uint8))
        return scales[rows.start - tiles.start : rows.stop - tiles.start, : self._columns].view(stored.dtype)

    def _tiles(self, rows: slice) -> slice:
        return slice(rows.start // TILE_ROWS * TILE_ROWS, round_up(rows.stop, TILE_ROWS))


class Mxfp8Matrix(QuantizedMatrix):
    """e4m3 values, and for every 32 columns a power of two."""

    dtypes = ("F8_E4M3",)

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer, block=32)
        self._scales = TiledScales(layer, ("U8", "F8_E8M0"), self.shape[0], self.shape[1] // self._block)

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        import torch

        powers = self._scales.read(rows).view(torch.float8_e8m0fnu)
        scales = checked_scales(self._layer, "weight_scale", powers[:, _blocks(columns, self._block)])
        return _scaled(self._stored(rows, columns).float(), scales, self._block)


class Nvfp4Matrix(QuantizedMatrix):
    """E2M1 values, two in a byte with the even column in the high nibble, an e4m3 scale for every 16 columns, and one
    float32 scale; perhaps a factor for each column, by which the layer's input is to be multiplied."""

    dtypes = ("U8",)
    packed = 2
    companions = ("weight_scale", "weight_scale_2", "pre_quant_scale")

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer, block=16)
        self._scales = TiledScales(layer, ("F8_E4M3",), self.shape[0], self.shape[1] // self._block)
        self._check_floats("weight_scale_2", ((), (1,)))
        self._has_factors = "pre_quant_scale" in layer.companions
        if self._has_factors:
            self._check_floats("pre_quant_scale", ((self.shape[1],),))

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        from engine.checkpoint.quantized.number_formats import E2M1, unpack_nibbles

        layer = self._layer
        blocks = self._scales.read(rows)[:, _blocks(columns, self._block)]
        whole = layer.read("weight_scale_2", tuple(slice(0, 1) for _ in layer.header("weight_scale_2").shape))
        scales = checked_scales(layer, "weight_scale", blocks) * checked_scales(layer, "weight_scale_2", whole)
        values = _scaled(unpack_nibbles(self._stored(rows, columns), E2M1, high_first=True), scales, self._block)
        if self._has_factors:
            values *= checked_scales(layer, "pre_quant_scale", layer.read("pre_quant_scale", (columns,)))
        return values

    def _scales_size(self, rows: slice, columns: slice) -> int:
        factors = self._bytes("pre_quant_scale") * (columns.stop - columns.start) if self._has_factors else 0
        return self._scales.size(rows) + self._bytes("weight_scale_2") + factors

    def _check_floats(self, kind: str, shapes: tuple[tuple[int, ...], ...]) -> None:
        header = self._layer.header(kind)
        if header.dtype not in FLOAT_BYTES or header.shape not in shapes:
            raise self._layer.wrong(kind, f"floats, {math.prod(shapes[0])} in number")

    def _bytes(self, kind: str) -> int:
        return FLOAT_BYTES[self._layer.header(kind).dtype]


def _scaled(values: torch.Tensor, scales: torch.Tensor, block: int) -> torch.Tensor:
    """(rows, columns) times (rows, blocks), in place."""
    rows, columns = values.shape
    values.view(rows, columns // block, block).mul_(scales.unsqueeze(-1))
    return values


def _blocks(columns: slice, block: int) -> slice:
    return slice(columns.start // block, columns.stop // block)
