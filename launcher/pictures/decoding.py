"""Decodes picture files with Pillow, in the process that is there for it: see `process.py`."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import TypeVar

from PIL import Image, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from engine.errors import ArgumentError
from launcher.pictures.colours import in_srgb, is_white_on_nothing, mask_levels, plain
from launcher.pictures.file_kinds import check_size, kind_of, unreadable, webp_size
from launcher.pictures.geometry import Canvas, Size

# Not `Image.open`, which may take a file for one of further formats.
_READERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
}
_MOST_TEXT = (
    16 * 2**20
)  # bytes of a text or a profile that is compressed; those of some programs are above Pillow's 1 MB
_ORIENTATION = 0x0112  # in EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)
_WHITE_STAYS = (
    "mask: what is transparent of it is repainted, and what is white stays; to repaint what is white, lay it over black"
)

T = TypeVar("T")


def configure_pillow() -> None:
    """Set Pillow's limits for a process that does nothing else."""
    warnings.simplefilter("ignore")  # of what is odd in a file, and harmless
    Image.MAX_IMAGE_PIXELS = None  # there is a limit of ours, in `check_size`
    PngImagePlugin.MAX_TEXT_CHUNK = _MOST_TEXT


class PictureFile:
    """A file whose header has been read: `size` is the picture's once it is upright. lies_over_white: whether it has
    been decoded, and is transparent somewhere.

    name: of the parameter that errors are about. Raises `ArgumentError` if it is none of ours, too large or damaged,
    as its methods do.
    """

    def __init__(self, name: str, data: bytes, most_pixels: int) -> None:
        self._name, self._data = name, data
        self.lies_over_white = False
        self._kind = kind_of(name, data)
        if self._kind == "WebP" and (stated := webp_size(data)) is not None:
            check_size(name, self._kind, stated, most_pixels)
        self._image = self._try(lambda: _READERS[self._kind](io.BytesIO(data)))
        check_size(name, self._kind, self._image.size, most_pixels)
        if self._kind == "PNG":
            self._try(self._image.load)  # whose EXIF may come last
        self._orientation = _orientation(self._image)
        width, height = self._image.size
        self.size: Size = (height, width) if self._orientation in _LYING else (width, height)

    def picture(self, lay_out: Callable[[Size], Canvas]) -> tuple[Canvas, Image.Image]:
        """Decode what is seen on the canvas that `lay_out` makes of its size, as RGB of the size that it has there."""
        canvas = lay_out(self.size)
        return canvas, self._try(lambda: self._seen(canvas))

    def mask(self) -> tuple[Image.Image, tuple[str, ...]]:
        """Decode it as a mask, L: 255 where it repaints, 0 where it keeps; and what its maker is to be warned of."""
        return self._try(self._as_mask)

    def _as_mask(self) -> tuple[Image.Image, tuple[str, ...]]:
        image = plain(self._loaded())
        return mask_levels(image), (_WHITE_STAYS,) if is_white_on_nothing(image) else ()

    def _seen(self, canvas: Canvas) -> Image.Image:
        profile = self._image.info.get("icc_profile")
        left, top, right, bottom = canvas.seen
        size = canvas.at[2] - canvas.at[0], canvas.at[3] - canvas.at[1]
        if isinstance(self._image, JpegImageFile):  # far larger ones are decoded smaller
            scale = max(size[0] / ((right - left) * self.size[0]), size[1] / ((bottom - top) * self.size[1]))
            width, height = (math.ceil(side * scale - 1e-6) for side in self._image.size)
            self._image.draft(self._image.mode, (width, height))
        image = plain(self._loaded())
        self.lies_over_white = image.mode == "RGBA"
        box = left * image.width, top * image.height, right * image.width, bottom * image.height
        return in_srgb(scaled(image, box, size), profile)

    def _loaded(self) -> Image.Image:
        """Decode it whole, and turn it upright."""
        self._image.load()
        image = self._image
        del self._image
        return image.transpose(_UPRIGHT[self._orientation]) if self._orientation in _UPRIGHT else image

    def _try(self, read: Callable[[], T]) -> T:
        """Have Pillow read, which raises whatever it likes over damaged files."""
        try:
            return read()
        except ArgumentError:
            raise
        except Exception as error:
            raise unreadable(self._name, self._kind, self._data, error) from error


def scaled(
    image: Image.Image,
    box: tuple[float, float, float, float],
    size: Size,
    method: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """Scale a part of a picture to a size. Pixels that need no scaling stay as they are."""
    left, top = round(box[0]), round(box[1])
    whole = left, top, left + size[0], top + size[1]
    if max(abs(edge - pixel) for edge, pixel in zip(box, whole, strict=True)) < 1e-6:
        return image if whole == (0, 0, *image.size) else image.crop(whole)
    box = max(0.0, box[0]), max(0.0, box[1]), min(image.width, box[2]), min(image.height, box[3])
    weighted = image.convert("RGBa") if image.mode == "RGBA" else image
    weighted = weighted.resize(size, method, box=box, reducing_gap=None if method == Image.Resampling.NEAREST else 3.0)
    return weighted.convert("RGBA") if image.mode == "RGBA" else weighted


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # damaged EXIF says nothing
        return 1
