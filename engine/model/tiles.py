"""How a picture's side is divided into tiles that overlap. Pure; in latent pixels, one of which is 8 of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The decoder's convolutions look 13 latent pixels far, ever more faintly. Of the OVERLAP pixels that two tiles share,
# MARGIN on either side are left to the tile that sees further, and the tiles are blended over those in between.
OVERLAP, MARGIN = 16, 6
SMALLEST_TILE = 48  # a smaller one would be mostly overlap


@dataclass(frozen=True)
class Tiles:
    """Tiles of one size along a side, and where each begins. Neighbours share `OVERLAP` pixels, or a few more."""

    size: int
    starts: tuple[int, ...]


def divide(length: int, longest: int) -> Tiles:
    """Cover a side of `length` with the fewest tiles of at most `longest`, which `SMALLEST_TILE` bounds from below."""
    longest = max(longest, SMALLEST_TILE)
    if length <= longest:
        return Tiles(length, (0,))
    count = math.ceil((length - OVERLAP) / (longest - OVERLAP))
    size = math.ceil((length + (count - 1) * OVERLAP) / count)
    return Tiles(size, tuple(index * (length - size) // (count - 1) for index in range(count)))
