"""The pixels of a picture that images begin from, as rank 0 gets them. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pixels:
    """A picture of `width` × `height` pixels: `rgb` is height · width · 3 bytes.

    mask: a byte for each latent pixel, row by row: 255 where the picture is repainted, 0 where it stays, and in between
    where it joins late; None where all is repainted.
    """

    width: int
    height: int
    rgb: bytes
    mask: bytes | None = None
