"""What a picture of the demo shows, from its pixels alone, and whether that is what its prompt asks for.

    seen = look(image)
    verdict(prompt, seen)  # {"background": True, "number": True, "colour": False, …}

`look` knows neither prompt nor size: the background is what the border shows; what differs from it are the objects;
each is compared with every shape at the place and radius that its own area and centre give. An object that is none of
the shapes, or nearly as much one as another, or that touches one of another colour, has the shape "", and a colour that
is none of the palette's is "".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from demo.captions import Kind, Prompt
from demo.pictures import PALETTE, RADII
from demo.shape_fit import Blot, fit_shape

ATTRIBUTES = ("background", "number", "colour", "shape", "size", "place", "relation")

# Colours are compared by their distance in RGB, 0 … 441. The nearest two of the palette are 85 apart.
COLOUR_TOLERANCE = 40.0
CONTRAST = 30.0  # what differs less from the background belongs to it
BORDER = 3  # pixels at every side that the background's colour is taken from
SPECK = 20  # pixels; the smallest object covers ten times as many
EDGE_GAP = 0.13  # an object is at an edge when at most this part of the shorter side is between them


@dataclass(frozen=True)
class SeenObject:
    """An object. colour, shape: of the grammar, or "" if none of them. x, y, radius: centre and radius of the circle
    around it (the one that `demo.pictures.Placed` means), in pixels from the left upper corner; without a shape the
    middle and half the longer side of the rectangle around it."""

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


def look(image: Image.Image, *, clean: bool = True) -> Seen:
    """What is to be seen in a picture of any size. clean: whether an object whose outline is not has a shape."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    height, width = pixels.shape[:2]
    border = np.ones((height, width), dtype=bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    background = np.median(pixels[border], axis=0)
    contrast = np.linalg.norm(pixels - background, axis=2)
    # Where two colours touch, the fainter one loses all but one of `touch` pixels to the stronger one's soft edge.
    touch = _halo(pixels) // 2 + 1
    labels = components((contrast > CONTRAST) & (contrast > 0.5 * _largest_near(contrast, touch - 1)))
    areas = np.bincount(labels.ravel())
    regions = [labels == i for i in np.flatnonzero(areas > SPECK) if i > 0]
    everything = np.any([np.zeros_like(labels, dtype=bool), *regions], axis=0)
    plain = contrast[~_largest_near(everything, _halo(pixels))] <= CONTRAST
    objects = [_object(pixels, background, region, everything & ~region, clean) for region in regions]
    for i, j in combinations(range(len(regions)), 2):
        if objects[i].colour != objects[j].colour and (_largest_near(regions[i], touch) & regions[j]).any():
            objects[i], objects[j] = replace(objects[i], shape=""), replace(objects[j], shape="")
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
    right = {
        "background": seen.background == prompt.background,
        "number": len(seen.objects) == len(prompt.objects),
        "colour": {item.colour for item in seen.objects} == {kind.colour for kind in prompt.objects},
        "shape": {item.shape for item in seen.objects} == {kind.shape for kind in prompt.objects},
    }
    if prompt.size:
        right["size"] = _all(seen, lambda item: size_name(item.radius) == prompt.size)
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
    """The size of an object of this radius in pixels: that whose own radius is nearest."""
    return min(RADII, key=lambda name: abs(radius - RADII[name]))


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


def _halo(pixels: np.ndarray) -> int:
    """How many pixels around an object its soft edge may reach."""
    return 2 + min(pixels.shape[:2]) // 64


def _largest_near(values: np.ndarray, distance: int) -> np.ndarray:
    """The largest value in the square around each pixel that reaches `distance` pixels to every side."""
    for axis in (0, 1):
        padding = [(distance, distance) if i == axis else (0, 0) for i in (0, 1)]
        windows = sliding_window_view(np.pad(values, padding, mode="edge"), 2 * distance + 1, axis=axis)
        values = windows.max(axis=-1)
    return values


def _object(
    pixels: np.ndarray, background: np.ndarray, region: np.ndarray, others: np.ndarray, clean: bool
) -> SeenObject:
    rgb = np.median(pixels[_core(region, _halo(pixels))], axis=0)
    fit = None
    if np.linalg.norm(rgb - background) > CONTRAST:
        around = _largest_near(region, _halo(pixels)) & ~others
        rows, columns = _extent(around)
        alone = np.where(around[rows, columns, None], pixels[rows, columns], background)
        fit = fit_shape(Blot(alone, rgb, background), clean=clean)
    if fit is not None:
        return SeenObject(colour_name(rgb), fit.shape, fit.x + columns.start, fit.y + rows.start, fit.radius)
    rows, columns = _extent(region)
    x, y = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
    return SeenObject(colour_name(rgb), "", x, y, max(columns.stop - columns.start, rows.stop - rows.start) / 2)


def _core(region: np.ndarray, depth: int) -> np.ndarray:
    """The pixels that are as far as this inside, or as far as a fifth of them are: free of soft or outlined edges."""
    for distance in range(depth, 0, -1):
        core = ~_largest_near(~region, distance)
        if 5 * core.sum() >= region.sum():
            return core
    return region


def _extent(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold the mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
