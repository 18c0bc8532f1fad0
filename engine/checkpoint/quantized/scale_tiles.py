"""The tiles that cuBLAS keeps block scales in. Pure Python."""

from __future__ import annotations

TILE_ROWS, TILE_COLUMNS = 128, 4


def tiled_shape(rows: int, columns: int) -> tuple[int, int]:
    """The shape that the scales of (rows, columns) blocks are padded to."""
    return round_up(rows, TILE_ROWS), round_up(columns, TILE_COLUMNS)


def round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
