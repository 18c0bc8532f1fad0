"""What a picture of the demo shows, from its pixels alone, and whether that is what its prompt asks for.

    seen = look(image)
    verdict(prompt, seen)  # {"background": True, "number": True, "colour": False, …}

`look` knows neither prompt nor size: the background is what the border shows; what differs from it are the objects;
each is compared with every shape at the place and radius that its own area and centre give. An object that is none of
the shapes, or nearly as much one as another, has the shape "", and a colour that is none of the palette's is "".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from demo.captions import SHAPES, Kind, Prompt
from demo.pictures import PALETTE, RADIUS, Placed, paint

ATTRIBUTES = ("background", "number", "colour", "shape", "size", "place", "relation")

# Colours are compared by their distance in RGB, 0 … 441. The nearest two of the palette are 85 apart.
COLOUR_TOLERANCE = 40.0
CONTRAST = 30.0  # what differs less from the background belongs to it
# A part of the squared shorter side. The smallest object covers ten times as much.
SPECK = 0.0015
# An object is a shape when this much of the shape's area, or less, is not as the shape would have it, and ...
MISMATCH = 0.13
# ... when the next best shape is worse by this factor at least, ...
DISTINCT = 1.5
# ... and when nowhere in it more than this part of a spot is missing or too much. The spot is a square, its side this
# part of the radius.
SPOT, SPOT_MISMATCH = 0.25, 0.6
EDGE_GAP = 0.1  # an object is at an edge when at most this part of the shorter side is between them


@dataclass(frozen=True)
class SeenObject:
    """An object. colour, shape: of the grammar, or "" if none of them. x, y, radius: centre and radius of the circle
    around it (the one that `demo.pictures.Placed` means), in pixels from the left upper corner; without a shape the
    centre of gravity and the radius of a disc of the same area."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Seen:
    """A picture of width × height pixels. background: a colour, or "" if it is none or not plain. objects: whatever
    differs from the background and is more than a speck, from left to right."""

    background: str
    objects: tuple[SeenObject, ...]
    width: int
    height: int


def look(image: Image.Image) -> Seen:
    """What is to be seen in a picture of any size."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    height, width = pixels.shape[:2]
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(border, axis=0)
    contrast = np.linalg.norm(pixels - background, axis=2)
    labels = components((contrast > CONTRAST) & (contrast > 0.5 * _largest_near(contrast, 1)))
    sizes = np.bincount(labels.ravel())
    regions = [labels == i for i in np.flatnonzero(sizes > SPECK * min(width, height) ** 2) if i > 0]
    everything = np.any(regions, axis=0) if regions else np.zeros_like(labels, dtype=bool)
    plain = contrast[~_grown(everything, 2)] <= CONTRAST
    objects = [_object(pixels, background, region, everything) for region in regions]
    return Seen(
        background=colour_name(background) if plain.size and plain.mean() > 0.98 else "",
        objects=tuple(sorted(objects, key=lambda seen: seen.x)),
        width=width,
        height=height,
    )


def verdict(prompt: Prompt, seen: Seen) -> dict[str, bool]:
    """Whether the picture is as the prompt says, for each of ATTRIBUTES that the prompt states.

    number: as many objects, of whatever kind. colour, shape: those of the prompt's objects and no others. size, place:
    of every object there is. relation: the object that is most like the first kind is where the prompt says, seen from
    the other one, of two.
    """
    side = min(seen.width, seen.height)
    right = {
        "background": seen.background == prompt.background,
        "number": len(seen.objects) == len(prompt.objects),
        "colour": {item.colour for item in seen.objects} == {kind.colour for kind in prompt.objects},
        "shape": {item.shape for item in seen.objects} == {kind.shape for kind in prompt.objects},
    }
    if prompt.size:
        right["size"] = _all(seen, lambda item: size_name(item.radius / side) == prompt.size)
    if prompt.place:
        right["place"] = _all(seen, lambda item: _is_at(prompt.place, item, seen))
    if prompt.second is not None:
        right["relation"] = _is_related(prompt, prompt.second, seen)
    return right


def colour_name(rgb: np.ndarray) -> str:
    """The palette's colour that these three numbers, 0 … 255, are near; "" if none is."""
    distances = {name: float(np.linalg.norm(rgb - np.array(colour))) for name, colour in PALETTE.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] <= COLOUR_TOLERANCE else ""


def size_name(radius: float) -> str:
    """The size of an object of this radius, a part of the shorter side: that whose range of radii is nearest."""
    return min(RADIUS, key=lambda name: abs(radius - sum(RADIUS[name]) / 2))


def _all(seen: Seen, condition: Callable[[SeenObject], bool]) -> bool:
    return bool(seen.objects) and all(condition(item) for item in seen.objects)


def _is_at(place: str, item: SeenObject, seen: Seen) -> bool:
    """Near that edge, and along it in the middle half."""
    gap = {
        "left": item.x - item.radius,
        "right": seen.width - item.x - item.radius,
        "top": item.y - item.radius,
        "bottom": seen.height - item.y - item.radius,
    }[place]
    along, length = (item.y, seen.height) if place in ("left", "right") else (item.x, seen.width)
    return gap <= EDGE_GAP * min(seen.width, seen.height) and abs(along - length / 2) <= length / 4


def _is_related(prompt: Prompt, second: Kind, seen: Seen) -> bool:
    if len(seen.objects) != 2:
        return False

    def likeness(item: SeenObject, kind: Kind) -> int:
        return (item.colour == kind.colour) + (item.shape == kind.shape)

    one, other = seen.objects
    straight = likeness(one, prompt.first) + likeness(other, second)
    swapped = likeness(other, prompt.first) + likeness(one, second)
    if straight == swapped:
        return False
    first, reference = (one, other) if straight > swapped else (other, one)
    dx, dy = first.x - reference.x, first.y - reference.y
    along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[prompt.relation]
    return along > 2 * abs(across)


def components(mask: np.ndarray) -> np.ndarray:
    """(height, width) of the same shape: for every pixel of a mask the number, from 1, of the connected part that it is
    in, and 0 elsewhere. Pixels that touch at a corner alone are not connected."""

    def runs(mask: np.ndarray) -> np.ndarray:
        starts = mask.copy()
        starts[:, 1:] &= ~mask[:, :-1]
        return np.where(mask, np.cumsum(starts).reshape(mask.shape), 0)

    rows, columns = runs(mask), runs(mask.T).T
    labels = rows
    while True:
        before = labels
        for lines in (columns, rows):
            smallest = np.full(lines.max() + 1, labels.size + 1)
            np.minimum.at(smallest, lines[mask], labels[mask])
            labels = np.where(mask, smallest[lines], 0)
        if (labels == before).all():
            return np.asarray(np.searchsorted(np.unique(np.append(labels, 0)), labels))


def _largest_near(values: np.ndarray, distance: int) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).filter(ImageFilter.MaxFilter(2 * distance + 1)))


def _grown(mask: np.ndarray, distance: int) -> np.ndarray:
    return _largest_near(mask, distance) > 0


def _object(pixels: np.ndarray, background: np.ndarray, region: np.ndarray, everything: np.ndarray) -> SeenObject:
    inside = ~_grown(~region, 1)
    rgb = np.median(pixels[inside if inside.any() else region], axis=0)
    near = _grown(region, 2) & (region | ~everything)
    direction = rgb - background
    cover = np.clip((pixels - background) @ direction / (direction @ direction), 0, 1) * near
    area = float(cover.sum())
    x = float((cover.sum(axis=0) * (np.arange(cover.shape[1]) + 0.5)).sum()) / area
    y = float((cover.sum(axis=1) * (np.arange(cover.shape[0]) + 0.5)).sum()) / area
    alone = np.where(near[..., None], pixels, background)

    fits = sorted((_fit(shape, alone, background, rgb, area, x, y) for shape in SHAPES), key=lambda fit: fit[0])
    (mismatch, spot, shape), (next_mismatch, _, _) = fits[:2]
    if mismatch > MISMATCH or next_mismatch < DISTINCT * mismatch or spot > SPOT_MISMATCH:
        return SeenObject(colour_name(rgb), "", x, y, float(np.sqrt(area / np.pi)))
    pattern = _patterns()[shape]
    radius = float(np.sqrt(area / pattern.area))
    return SeenObject(colour_name(rgb), shape, x - radius * pattern.x, y - radius * pattern.y, radius)


# Objects are compared with shapes in a frame of this side, where the circle around a shape has this radius.
_FRAME, _RADIUS = 56, 20


@dataclass(frozen=True)
class _Pattern:
    """A shape of radius 1: its area, its centre of gravity seen from the circle's centre, and how much of each pixel of
    the frame it covers, with sharp and with softer edges, (softness, frame, frame)."""

    area: float
    x: float
    y: float
    cover: np.ndarray


@cache
def _patterns() -> dict[str, _Pattern]:
    patterns = {}
    for shape in SHAPES:
        centre = _FRAME / 2
        image = paint([Placed(shape, centre, centre, _RADIUS, (255, 255, 255))], (0, 0, 0), _FRAME, _FRAME).convert("L")
        cover = np.stack([np.asarray(image.filter(ImageFilter.GaussianBlur(blur))) for blur in (0.5, 1, 2)]) / 255
        area = cover[0].sum()
        along = (np.arange(_FRAME) + 0.5 - centre) / area / _RADIUS
        patterns[shape] = _Pattern(
            area=float(area) / _RADIUS**2,
            x=float(cover[0].sum(axis=0) @ along),
            y=float(cover[0].sum(axis=1) @ along),
            cover=cover,
        )
    return patterns


def _fit(
    shape: str, alone: np.ndarray, background: np.ndarray, rgb: np.ndarray, area: float, x: float, y: float
) -> tuple[float, float, str]:
    """How much of the shape's area is not as the shape of this area and centre of gravity, and how much of the spot
    where it is worst."""
    pattern = _patterns()[shape]
    radius = np.sqrt(area / pattern.area)
    x, y = x - radius * pattern.x, y - radius * pattern.y
    reach = radius * _FRAME / 2 / _RADIUS
    pad = int(np.ceil(reach)) + 1
    left, top = float(x - reach + pad), float(y - reach + pad)
    box = (left, top, float(left + 2 * reach), float(top + 2 * reach))
    fill = [(pad, pad), (pad, pad)]
    channels = [
        np.asarray(
            Image.fromarray(np.pad(alone[..., i], fill, constant_values=background[i])).resize(
                (_FRAME, _FRAME), Image.Resampling.BILINEAR, box=box
            )
        )
        for i in range(3)
    ]
    shown = np.stack(channels, axis=-1) - background
    expected = pattern.cover[..., None] * (rgb - background)
    mismatch = np.linalg.norm(shown - expected, axis=3) / np.linalg.norm(rgb - background)
    mismatch = np.minimum(mismatch, 1)
    best = mismatch[np.argmin(mismatch.sum(axis=(1, 2)))]
    spot = _means(best, round(SPOT * _RADIUS)).max()
    return float(best.sum() / pattern.cover[0].sum()), float(spot), shape


def _means(values: np.ndarray, width: int) -> np.ndarray:
    """Means over squares of this width, wherever one fits in."""
    sums = np.cumsum(np.cumsum(np.pad(values, ((1, 0), (1, 0))), axis=0), axis=1)
    return (sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width] + sums[:-width, :-width]) / width**2
