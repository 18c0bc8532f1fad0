"""How a picture's side is divided into tiles that overlap. Pure; in latent pixels, one of which is 8 of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from engine.config.components import VAEConfig

# The decoder's convolutions look 13 latent pixels far, ever more faintly. Of the OVERLAP pixels that two tiles share,
# MARGIN on either side are left to the tile that sees further, and the tiles are blended over those in between.
OVERLAP, MARGIN = 16, 6
RESNET_REACH = 2  # how many pixels to either side a residual block of the VAE looks, by its two convolutions
SMALLEST_TILE = 48  # a smaller one would be mostly overlap


@dataclass(frozen=True)
class Tiles:
    """Tiles of one size along a side, and where each begins. Neighbours share `OVERLAP` pixels, or as many as `divide`
    was told, or a few more."""

    size: int
    starts: tuple[int, ...]


def divide(length: int, longest: int, overlap: int = OVERLAP) -> Tiles:
    """Cover a side of `length` with the fewest tiles of at most `longest`, which `SMALLEST_TILE` and twice the overlap
    bound from below."""
    longest = max(longest, SMALLEST_TILE, 2 * overlap)
    if length <= longest:
        return Tiles(length, (0,))
    count = math.ceil((length - overlap) / (longest - overlap))
    size = math.ceil((length + (count - 1) * overlap) / count)
    return Tiles(size, tuple(index * (length - size) // (count - 1) for index in range(count)))


def encoder_reach(config: VAEConfig) -> int:
    """Count how many latent pixels to either side of a pixel the encoder looks on its way down, by its convolutions."""
    before = beyond = 0  # pixels on either side of one at its end, at the level that has been reached
    for level in reversed(range(len(config.dim_mult))):
        if level < len(config.dim_mult) - 1:
            before, beyond = 2 * before, 2 * beyond + 2  # a pixel is made of the 3 that begin with its own
        before, beyond = (each + RESNET_REACH * config.num_res_blocks for each in (before, beyond))
    before, beyond = before + 1, beyond + 1  # the first convolution
    return -(-max(before, beyond - (config.scale_factor - 1)) // config.scale_factor)


class Part(NamedTuple):
    """A part of a side: what is `seen` to compute what is `kept`."""

    seen: slice
    kept: slice


def divide_exactly(own: slice, length: int, reach: int, longest: int | None) -> list[Part]:
    """Divide what is `own` of a side of `length` into parts that are kept, next to each other, where each pixel is seen
    with all others that are within `reach` of it. longest: as in `divide`, of what is seen; None: one part."""
    first, last = max(0, own.start - reach), min(length, own.stop + reach)
    tiles = divide(last - first, last - first if longest is None else longest, 2 * reach)
    seen = [slice(first + start, first + start + tiles.size) for start in tiles.starts]
    cuts = [own.start, *((one.stop + other.start) // 2 for one, other in pairwise(seen)), own.stop]
    return [Part(each, slice(*cut)) for each, cut in zip(seen, pairwise(cuts), strict=True)]
