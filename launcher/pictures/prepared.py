"""A picture that a client sent, as images begin from it, and how what is drawn is put back into it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
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

    @cached_property
    def keeps_source(self) -> bool:
        """Whether pixels of the source are seen in answers as they were."""
        if self.patch is None:
            return False
        whole = self.patch.box == (0, 0, *self.answer_size)
        return not whole or self.patch.alpha != b"\xff" * len(self.patch.alpha)

    def finish(self, drawn: Image.Image) -> Image.Image:
        """Put what was drawn into the source, whose pixels outside of the patch stay as they are."""
        return self._joined(drawn, self.answer_size)

    def finish_preview(self, drawn: Image.Image) -> Image.Image:
        """Put a small picture of what is being drawn into one of the source that is as much smaller."""
        scale = drawn.width / self.width
        width, height = (max(1, round(side * scale)) for side in self.answer_size)
        return self._joined(drawn, (width, height))

    def _joined(self, drawn: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Join what was drawn with the source, both scaled for an answer of this size."""
        if self.patch is None:
            return drawn
        from PIL import Image

        def scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
            return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)

        across, down = size[0] / self.answer_size[0], size[1] / self.answer_size[1]
        left, top, right, bottom = self.patch.box
        place = round(left * across), round(top * down), round(right * across), round(bottom * down)
        seen = max(1, place[2] - place[0]), max(1, place[3] - place[1])
        inner = [
            max(1, round(part * has / all_))
            for part, has, all_ in zip(self.patch.inner, drawn.size, (self.width, self.height), strict=True)
        ]
        answer = scaled(self._source(), size)
        alpha = Image.frombytes("L", (right - left, bottom - top), self.patch.alpha)
        answer.paste(scaled(drawn.crop((0, 0, inner[0], inner[1])), seen), place[:2], scaled(alpha, seen))
        return answer

    def _source(self) -> Image.Image:
        """Make an image of the answer before anything was drawn."""
        from PIL import Image

        assert self.patch is not None
        if self.patch.source is not None:
            return Image.frombytes("RGB", self.answer_size, self.patch.source)
        return Image.frombytes("RGB", (self.width, self.height), self.pixels.rgb).crop((0, 0, *self.answer_size))
