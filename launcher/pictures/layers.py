"""Makes of a picture and its mask what is drawn, what of it is repainted, and where it is seen in the answer."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageChops, ImageFilter

from engine.errors import ArgumentError
from launcher.pictures.decoding import scaled
from launcher.pictures.geometry import Box, Canvas, Size, crop_box
from launcher.pictures.wanted import Wanted


@dataclass(frozen=True)
class Layers:
    """What is drawn, RGB, and as bytes its mask by latent pixels. inner, box, alpha and source: see `Patch`."""

    drawn: Image.Image
    mask: bytes | None = None
    inner: Size | None = None
    box: Box | None = None
    alpha: Image.Image | None = None
    source: Image.Image | None = None


def make_layers(canvas: Canvas, picture: Image.Image, mask: Image.Image | None, wanted: Wanted) -> Layers:
    """Put a picture on its canvas, and what is seen there of its mask, which is of any size and the source's shape.

    Raises `ArgumentError` about a mask that repaints nothing.
    """
    if not wanted.keeps:
        return Layers(extended(picture, canvas.at, canvas.drawn))
    mask = _mask_on(canvas, mask, wanted)
    masked = mask.getbbox()
    if masked is None:
        raise _nothing(wanted, f"it repaints nothing of the {canvas.size[0]} × {canvas.size[1]} pixels that are left")
    alpha = _feathered(mask, wanted.mask_feather)
    if wanted.mask_crop is None:
        drawn = extended(picture, canvas.at, canvas.drawn)
        mask = extended(mask, (0, 0, *canvas.size), canvas.drawn)
        return Layers(drawn, _latent(mask, wanted), canvas.size, (0, 0, *canvas.size), alpha)
    source = extended(picture, canvas.at, canvas.size)
    left, top, right, bottom = crop_box(masked, max(wanted.mask_crop, wanted.mask_feather), canvas.size, canvas.drawn)
    box = left, top, min(right, canvas.size[0]), min(bottom, canvas.size[1])
    inner = (
        max(1, round(canvas.drawn[0] * (box[2] - left) / (right - left))),
        max(1, round(canvas.drawn[1] * (box[3] - top) / (bottom - top))),
    )
    # Extended only then: of another shape than the canvas, what is widened may be many times as large.
    drawn = source.crop(box).resize(inner, Image.Resampling.LANCZOS, reducing_gap=3.0)
    mask = mask.crop(box).resize(inner, Image.Resampling.NEAREST)
    drawn, mask = (extended(layer, (0, 0, *inner), canvas.drawn) for layer in (drawn, mask))
    return Layers(drawn, _latent(mask, wanted), inner, box, alpha.crop(box), source)


def extended(image: Image.Image, at: Box, size: Size) -> Image.Image:
    """Return a canvas of this size with an image at its place, whose edge goes on to the canvas' own."""
    left, top, right, bottom = at
    if (left, top) == (0, 0) and size == image.size:
        return image
    canvas = Image.new(image.mode, size)
    canvas.paste(image, (left, top))
    for start, end, edge in ((0, left, left), (right, size[0], right - 1)):
        if start < end:
            column = canvas.crop((edge, top, edge + 1, bottom))
            canvas.paste(column.resize((end - start, bottom - top), Image.Resampling.NEAREST), (start, top))
    for start, end, edge in ((0, top, top), (bottom, size[1], bottom - 1)):
        if start < end:
            row = canvas.crop((0, edge, size[0], edge + 1))
            canvas.paste(row.resize((size[0], end - start), Image.Resampling.NEAREST), (0, start))
    return canvas


def _mask_on(canvas: Canvas, mask: Image.Image | None, wanted: Wanted) -> Image.Image:
    """Scale a mask, or one that keeps everything, as the picture is, and put it in its place on the canvas; what lies
    around that is repainted."""
    size = canvas.at[2] - canvas.at[0], canvas.at[3] - canvas.at[1]
    if mask is None:
        placed = Image.new("L", size, 0)
    elif mask.getbbox() is None and wanted.outpaint is None:
        raise _nothing(wanted, "it is black all over")
    else:
        sides = (*mask.size, *mask.size)
        seen = tuple(fraction * side for fraction, side in zip(canvas.seen, sides, strict=True))
        placed = scaled(mask, (seen[0], seen[1], seen[2], seen[3]), size, Image.Resampling.NEAREST)
    if size == canvas.size:
        return placed
    whole = Image.new("L", canvas.size, 255)
    whole.paste(placed, canvas.at[:2])
    return whole


def _feathered(mask: Image.Image, feather: int) -> Image.Image:
    """Return 255 wherever a mask repaints anything, which falls off to 0 over `feather` pixels outside of it."""
    seen = mask.point([0, *[255] * 255])
    if feather == 0:
        return seen
    outer, blur = (feather + 1) // 2, feather // 2
    grown = seen
    for radius in ((outer, 0), (0, outer)):
        grown = grown.filter(ImageFilter.BoxBlur(radius)).point([0, *[255] * 255])
    return ImageChops.lighter(seen, grown.filter(ImageFilter.BoxBlur(blur)))


def _latent(mask: Image.Image, wanted: Wanted) -> bytes:
    """Take the upper left pixel of each latent one, as torch's nearest interpolation does."""
    levels, width, pixels = mask.tobytes(), mask.width, wanted.latent
    rows = (levels[start : start + width : pixels] for start in range(0, len(levels), width * pixels))
    latent = b"".join(rows)
    if not any(latent):
        larger = "give mask_crop" if wanted.mask_crop is None else "give a smaller mask_crop or a larger size"
        raise _nothing(wanted, f"what it repaints is too small, below {pixels} pixels: {larger} to draw it larger")
    return latent


def _nothing(wanted: Wanted, why: str) -> ArgumentError:
    if "mask" not in wanted.names:
        return ArgumentError(f"outpaint adds too little: {why}", parameter="outpaint")
    return ArgumentError(f"mask must be white, or transparent, where the image is repainted: {why}", parameter="mask")
