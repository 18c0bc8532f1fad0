"""The number formats and layouts that quantised files are made of.

Each function is element by element or has a fixed order of operations, so that a slice of a matrix comes out the same,
bit for bit, whatever else is decoded with it. Imports torch only when one is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_AT_ONCE = 1 << 20  # numbers that are rotated at once
TILE_ROWS, TILE_COLUMNS = 128, 4  # of block scales, as cuBLAS reads them

# The sixteen 4-bit codes. E2M1: bit 3 is the sign. Signed integers: two's complement.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# bitsandbytes' own, of numbers from -1 to 1: quantiles of a normal distribution, which begin at -1, and an E2M1.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_BNB_FP4 = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
BNB_FP4 = (*_BNB_FP4, *(-value for value in _BNB_FP4))
INT4 = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0)


def rotate_groups(x: torch.Tensor, group: int) -> torch.Tensor:
    """Multiply every group of columns by H, which is its own inverse. x: (rows, columns) float32, as is the result;
    `group` is a power of 4 that divides the columns.

    H is the Kronecker power of H4 = ½ [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]. Its factors are
    applied one after the other, to as many groups at once as a processor's cache has room for.
    """
    groups = x.reshape(-1, group)
    rotated = groups.new_empty(groups.shape)
    at_once = max(1, _AT_ONCE // group)
    for chunk, result in zip(groups.split(at_once), rotated.split(at_once), strict=True):
        result.copy_(_rotate(chunk.t().contiguous()).t())
    return rotated.view(x.shape)


def _rotate(x: torch.Tensor) -> torch.Tensor:
    """H x of a (group, count) matrix. Contiguous."""
    import torch

    group, count = x.shape
    stride = 1
    while stride < group:
        shape = (group // (4 * stride), 4, stride * count)
        a, b, c, d = x.view(shape).unbind(1)
        half = (a + b).add_(c).add_(d).mul_(0.5)
        x = torch.empty_like(x)
        # each row of H4 is half the sum of all four, less one of them
        for result, other in zip(x.view(shape).unbind(1), (d, c, b, a), strict=True):
            torch.sub(half, other, out=result)
        stride *= 4
    return x


def tiled_shape(rows: int, columns: int) -> tuple[int, int]:
    """Return the shape that the scales of (rows, columns) blocks are padded to."""
    return -(-rows // TILE_ROWS) * TILE_ROWS, -(-columns // TILE_COLUMNS) * TILE_COLUMNS


def tile_scales(scales: torch.Tensor) -> torch.Tensor:
    """Pad (rows, columns) in reading order with zeros, and put them in tiles of 128 × 4 one after the other, as cuBLAS
    reads them: in a tile, row r and column c stand at (r mod 32) · 16 + (r div 32) · 4 + c."""
    rows, columns = scales.shape
    height, width = tiled_shape(rows, columns)
    padded = scales.new_zeros((height, width))
    padded[:rows, :columns] = scales
    tiles = padded.reshape(height // TILE_ROWS, 4, 32, width // TILE_COLUMNS, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(height, width)


def untile_scales(tiled: torch.Tensor) -> torch.Tensor:
    """Invert `tile_scales`: (padded rows, padded columns) in tiles → the same in reading order."""
    height, width = tiled.shape
    tiles = tiled.reshape(height // TILE_ROWS, width // TILE_COLUMNS, 32, 4, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(height, width)


def unpack_nibbles(packed: torch.Tensor, codes: tuple[float, ...], *, high_first: bool) -> torch.Tensor:
    """Look up what each 4-bit code stands for: (rows, columns / 2) bytes → (rows, columns) float32, on the CPU.

    high_first: whether the high nibble is the even column.
    """
    import torch

    table = torch.tensor(codes)
    pairs = torch.stack((table.repeat_interleave(16), table.repeat(16)), dim=1)  # of a byte: (high, low)
    if not high_first:
        pairs = pairs.flip(1)
    rows, width = packed.shape
    return torch.nn.functional.embedding(packed.view(torch.uint8).int(), pairs).reshape(rows, 2 * width)
