"""Block-scaled formats: mxfp8 and nvfp4, whose scales are stored in the tiled order that tensor cores read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from engine.checkpoint.files.stored import FLOAT_BYTES, whole
from engine.checkpoint.quantized.scaled import Layer, QuantizedMatrix

if TYPE_CHECKING:
    import torch

TILE_ROWS, TILE_COLUMNS = 128, 4  # of scales, as cuBLAS reads them


def tiled_shape(rows: int, columns: int) -> tuple[int, int]:
    """Return the shape that the scales of (rows, columns) blocks are padded to."""
    return -(-rows // TILE_ROWS) * TILE_ROWS, -(-columns // TILE_COLUMNS) * TILE_COLUMNS


def tile_scales(scales: torch.Tensor) -> torch.Tensor:
    """(rows, columns) in reading order → padded with zeros, in tiles of 128 × 4 one after the other, as cuBLAS reads
    them: in a tile, row r and column c stand at (r mod 32) · 16 + (r div 32) · 4 + c."""
    import torch.nn.functional as F

    rows, columns = scales.shape
    height, width = tiled_shape(rows, columns)
    padded = F.pad(scales, (0, width - columns, 0, height - rows))
    tiles = padded.reshape(height // TILE_ROWS, 4, 32, width // TILE_COLUMNS, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(height, width)


def untile_scales(tiled: torch.Tensor) -> torch.Tensor:
    """Invert `tile_scales`, padding included: (padded rows, padded columns) in tiles → in reading order."""
    height, width = tiled.shape
    tiles = tiled.reshape(height // TILE_ROWS, width // TILE_COLUMNS, 32, 4, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(height, width)


class BlockScaledMatrix(QuantizedMatrix):
    """A matrix with a scale of one byte for each block of columns in a row.

    scale_dtypes: that the scales may be stored as.
    """

    scale_dtypes: ClassVar[tuple[str, ...]]

    def __init__(self, layer: Layer, block: int) -> None:
        super().__init__(layer, block)
        header = layer.header("weight_scale")
        self._tiled_shape = tiled_shape(self.shape[0], self.shape[1] // block)
        if header.dtype not in self.scale_dtypes or header.shape != self._tiled_shape:
            raise layer.wrong("weight_scale", f"{' or '.join(self.scale_dtypes)} {self._tiled_shape}")

    def _block_scales(self, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, blocks) as stored, in reading order. A tile's columns are not a slice of what is stored, so the whole
        width of the tiles is read."""
        import torch

        tiles = self._tiles(rows)
        stored = self._layer.read("weight_scale", (tiles, slice(0, self._tiled_shape[1])))
        scales = untile_scales(stored.view(torch.uint8))[rows.start - tiles.start : rows.stop - tiles.start]
        return scales[:, columns.start // self._block : columns.stop // self._block].view(stored.dtype)

    def _scaled(self, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """(rows, columns) times (rows, blocks), in place."""
        rows, columns = values.shape
        values.view(rows, columns // self._block, self._block).mul_(scales.unsqueeze(-1))
        return values

    def _scales_size(self, rows: slice, columns: slice) -> int:
        tiles = self._tiles(rows)
        return (tiles.stop - tiles.start) * self._tiled_shape[1]

    def _tiles(self, rows: slice) -> slice:
        """The rows of the tiles that the scales of these rows lie in."""
        return slice(rows.start // TILE_ROWS * TILE_ROWS, -(-rows.stop // TILE_ROWS) * TILE_ROWS)


class Mxfp8Matrix(BlockScaledMatrix):
    """e4m3 values, and for every 32 columns a power of two."""

    dtypes = ("F8_E4M3",)
    scale_dtypes = ("U8", "F8_E8M0")

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer, block=32)

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        import torch

        powers = self._block_scales(rows, columns).view(torch.float8_e8m0fnu)
        return self._scaled(self._stored(rows, columns).float(), self._layer.checked_scales("weight_scale", powers))


class Nvfp4Matrix(BlockScaledMatrix):
    """E2M1 values, two in a byte with the even column in the high nibble, an e4m3 scale for every 16 columns, and one
    float32 scale; perhaps a factor for each column, by which the layer's input is to be multiplied."""

    dtypes = ("U8",)
    scale_dtypes = ("F8_E4M3",)
    packed = 2
    companions = ("weight_scale", "weight_scale_2", "pre_quant_scale")

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer, block=16)
        self._check_floats("weight_scale_2", ((), (1,)))
        self._has_factors = "pre_quant_scale" in layer.companions
        if self._has_factors:
            self._check_floats("pre_quant_scale", ((self.shape[1],),))

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        from engine.checkpoint.quantized.number_formats import E2M1, unpack_nibbles

        layer = self._layer
        blocks = self._block_scales(rows, columns)
        one = layer.read("weight_scale_2", whole(layer.header("weight_scale_2").shape))
        scales = layer.checked_scales("weight_scale", blocks) * layer.checked_scales("weight_scale_2", one)
        values = self._scaled(unpack_nibbles(self._stored(rows, columns), E2M1, high_first=True), scales)
        if self._has_factors:
            values *= layer.checked_scales("pre_quant_scale", layer.read("pre_quant_scale", (columns,)))
        return values

    def _scales_size(self, rows: slice, columns: slice) -> int:
        factors = self._bytes("pre_quant_scale") * (columns.stop - columns.start) if self._has_factors else 0
        return super()._scales_size(rows, columns) + self._bytes("weight_scale_2") + factors

    def _check_floats(self, kind: str, shapes: tuple[tuple[int, ...], ...]) -> None:
        header = self._layer.header(kind)
        if header.dtype not in FLOAT_BYTES or header.shape not in shapes:
            raise self._layer.wrong(kind, f"floats, {math.prod(shapes[0])} in number")

    def _bytes(self, kind: str) -> int:
        """Of an element of a companion."""
        return FLOAT_BYTES[self._layer.header(kind).dtype]
