"""A picture that a client sent, as images begin from it, and how what is drawn is put back into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.pictures.pixels import Pixels

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Patch:
    """Where what was drawn belongs in the source.

    inner: width and height of what counts of a drawn image, its upper left part; the rest only fills it up. box: left,
    top, right and bottom of its place in the answer. alpha: a byte for each pixel of the box: 255 where what was drawn
    is seen. source: the answer's pixels before, 3 bytes each; None where the box is all of it, and the drawn canvas
    has them.
    """

    inner: tuple[int, int]
    box: tuple[int, int, int, int]
    alpha: bytes
    source: bytes | None = None


@dataclass(frozen=True)
class PreparedPicture:
    """What images begin from: `pixels` of the size in which they are drawn.

    answer_size: width and height of finished images. patch: None where these are what was drawn. warnings: what was
    changed to fit.
    """

    answer_size: tuple[int, int]
    pixels: Pixels
    patch: Patch | None = None
    warnings: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Pixels that are drawn."""
        return self.pixels.width

    @property
    def height(self) -> int:
        """Pixels that are drawn."""
        return self.pixels.height

    @property
    def size(self) -> int:
        """The bytes that it holds."""
        parts = (self.pixels.rgb, self.pixels.mask, *((self.patch.alpha, self.patch.source) if self.patch else ()))
        return sum(len(part) for part in parts if part is not None)

    def finish(self, drawn: Image.Image) -> Image.Image:
        """Put what was drawn into the source, whose pixels outside of the patch stay as they are."""
        return drawn

    def finish_preview(self, drawn: Image.Image) -> Image.Image:
        """Put a small picture of what is being drawn into a small one of the source."""
        return drawn
