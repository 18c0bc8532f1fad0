"""Where a picture lies in what is drawn of it, and what is drawn in the answer. Pure: sizes in, boxes out.

Sizes are width and height, boxes left, top, right and bottom, all in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.errors import ArgumentError
from launcher.messages.message_parts import Outpaint
from launcher.pictures.wanted import Wanted

Size = tuple[int, int]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Canvas:
    """The answer as it is before anything is drawn, of `size`, and the size in which it is drawn.

    seen: the part of the picture that is seen, in fractions of its sides; at: its place in the answer. What lies around
    that is outpainted.
    """

    size: Size
    drawn: Size
    seen: tuple[float, float, float, float]
    at: Box
    warnings: tuple[str, ...] = ()


def lay_out(source: Size, wanted: Wanted) -> Canvas:
    """Lay out a picture of size `source`. Raises `ArgumentError` for what cannot be drawn."""
    margins = wanted.outpaint or Outpaint()
    whole = source[0] + margins.left + margins.right, source[1] + margins.top + margins.bottom
    what = "image with what outpaint adds" if wanted.outpaint is not None else "image"
    asked = _asked(whole, wanted)
    if wanted.mask_crop is not None:  # the size is that of the part that is drawn
        size, why = _fitted(whole, wanted, domain=False)
        drawn = padded(asked or _fitted(whole, wanted, domain=True)[0], wanted)
    else:
        size, why = (asked, "as the size says") if asked is not None else _fitted(whole, wanted, domain=True)
        drawn = padded(size, wanted)
        if not wanted.keeps:
            size, why = drawn, why if drawn == size else why or f"multiples of {wanted.multiple}"
    _check_pixels(drawn, wanted)
    return _placed(source, margins, whole, size, drawn, what, why)


def padded(size: Size, wanted: Wanted) -> Size:
    """Round a size up to what can be drawn."""
    least = wanted.limits.min_side if wanted.good_sides is None else max(wanted.limits.min_side, wanted.good_sides[0])
    multiple = wanted.multiple
    width, height = (math.ceil(max(side, least) / multiple) * multiple for side in size)
    return width, height


def compare_mask(mask: Size, source: Size) -> str | None:
    """Return a warning about a mask of another size than the picture's, but of its shape.

    Raises `ArgumentError` for one of another shape.
    """
    if mask == source:
        return None
    differs = abs(mask[0] * source[1] - mask[1] * source[0])
    if differs > max(source):  # a pixel more or less of either
        allowed = f"of the image's size, {source[0]} × {source[1]} pixels, or of that shape"
        raise ArgumentError(f"mask must be {allowed}, got {mask[0]} × {mask[1]}", parameter="mask")
    return f"mask: {mask[0]} × {mask[1]} pixels were scaled to the image's {source[0]} × {source[1]}"


def crop_box(masked: Box, margin: int, canvas: Size, drawn: Size) -> Box:
    """Give the part of a canvas that is drawn: what is masked with a margin, widened to the shape of `drawn`.

    It may reach over the canvas' right or bottom edge, and is never smaller than what is masked.
    """
    left, top = max(0, masked[0] - margin), max(0, masked[1] - margin)
    right, bottom = min(canvas[0], masked[2] + margin), min(canvas[1], masked[3] + margin)
    width, height = right - left, bottom - top
    width, height = (
        max(width, math.ceil(height * drawn[0] / drawn[1])),
        max(height, math.ceil(width * drawn[1] / drawn[0])),
    )
    left = _shifted((left + right - width) // 2, width, canvas[0])
    top = _shifted((top + bottom - height) // 2, height, canvas[1])
    return left, top, left + width, top + height


def _shifted(start: int, length: int, room: int) -> int:
    """Move what begins at `start` so that it lies within `room`, or begins with it where there is too little."""
    return max(0, min(start, room - length))


def _asked(whole: Size, wanted: Wanted) -> Size | None:
    """The size that was asked for, of which one side may follow from the other by the picture's shape."""
    width, height, limits = wanted.width, wanted.height, wanted.limits
    if width is None and height is None:
        return None
    asked = (
        width if width is not None else max(1, round((height or 1) * whole[0] / whole[1])),
        height if height is not None else max(1, round((width or 1) * whole[1] / whole[0])),
    )
    name, other = ("width", "height") if width is not None else ("height", "width")
    side, follows = asked if width is not None else asked[::-1]
    if not limits.min_side <= follows <= limits.max_side:
        raise ArgumentError(
            f"{name} {side} makes {other} {follows} by the shape of the image, {whole[0]} × {whole[1]} pixels; "
            f"it must be between {limits.min_side} and {limits.max_side}: give both",
            parameter=name,
        )
    return asked


def _fitted(whole: Size, wanted: Wanted, *, domain: bool) -> tuple[Size, str]:
    """Scale a size into what can be drawn, and where `domain` says so into what the model was made for; say why."""
    limits, multiple, good = wanted.limits, wanted.multiple, wanted.good_sides if domain else None
    least = limits.min_side if good is None else max(limits.min_side, good[0])
    most = limits.max_side if good is None else min(limits.max_side, good[1])
    least = math.ceil(least / multiple) * multiple
    most = max(least, most // multiple * multiple)
    shorter, longer = min(whole), max(whole)
    largest = min(most / longer, math.sqrt(limits.max_pixels / (whole[0] * whole[1])))
    smallest = least / shorter if good is not None or not wanted.keeps else 0.0  # else the edge makes up for it
    if smallest > largest and not wanted.keeps:
        if good is None:
            allowed = f"in such a shape that its longer side is at most {most // least} times the shorter one"
            raise ArgumentError(f"image must be {allowed}, got {whole[0]} × {whole[1]} pixels", parameter="image")
        return ((most, least) if whole[0] > whole[1] else (least, most)), _made_for(good)
    scale = min(max(1.0, smallest), largest)
    size = _scaled(whole, scale)
    length = max(size)
    while length > 1 and _too_large(padded(size, wanted), most, limits.max_pixels):
        length -= 1
        size = _scaled(whole, length / longer)
    if size == whole:
        return size, ""
    if good is not None and not good[0] <= min(whole) <= max(whole) <= good[1]:
        return size, _made_for(good)
    return size, "as large as an image may be" if scale < 1 or size[0] < whole[0] else "as small as an image may be"


def _made_for(good: Size) -> str:
    return f"since the model was made for sides from {good[0]} to {good[1]} pixels"


def _scaled(size: Size, scale: float) -> Size:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _too_large(size: Size, most_side: int, most_pixels: int) -> bool:
    return max(size) > most_side or size[0] * size[1] > most_pixels


def _check_pixels(drawn: Size, wanted: Wanted) -> None:
    most = wanted.limits.max_pixels
    if drawn[0] * drawn[1] > most:
        text = f"width × height must be at most {most} pixels, got {drawn[0]} × {drawn[1]}"
        raise ArgumentError(text, parameter="width" if wanted.width or wanted.height else "image")


def _placed(source: Size, margins: Outpaint, whole: Size, size: Size, drawn: Size, what: str, why: str) -> Canvas:
    """Have the picture with its margins cover the canvas, whatever is too much cut off evenly."""
    scale = max(size[0] / whole[0], size[1] / whole[1])
    seen, at = [], []
    for pixels, before, total, room in zip(source, (margins.left, margins.top), whole, size, strict=True):
        cut = max(0.0, (total * scale - room) / 2)
        start = min(room, max(0, round(before * scale - cut)))
        end = min(room, max(0, round((before + pixels) * scale - cut)))
        if start >= end:
            left = f"nothing of its {source[0]} × {source[1]} pixels is left in {size[0]} × {size[1]}"
            raise ArgumentError(f"outpaint must leave something of the image: {left}", parameter="outpaint")
        # What lies where the canvas has an edge, and the picture's own edges where it has none.
        first = max(0.0, cut / scale - before) if start == 0 else 0.0
        last = min(float(pixels), (room + cut) / scale - before) if end == room else float(pixels)
        seen.append((first / pixels, last / pixels))
        at.append((start, end))
    warnings: tuple[str, ...] = ()
    if size != whole:
        cropped = any(total * scale - room >= 1 for total, room in zip(whole, size, strict=True))
        done = " and ".join(["scaled"] * (scale != 1 or not cropped) + ["cropped"] * cropped)
        warnings = (f"{what}: {whole[0]} × {whole[1]} pixels were {done} to {size[0]} × {size[1]}, {why}",)
    part = seen[0][0], seen[1][0], seen[0][1], seen[1][1]
    return Canvas(size, drawn, part, (at[0][0], at[1][0], at[0][1], at[1][1]), warnings)
