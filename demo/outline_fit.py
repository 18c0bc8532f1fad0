"""How cleanly an object has the outline of its shape: how round it is, how straight its sides are, how even its halves.

The outline is walked in small steps. At each, the difference between the object and the shape as the renderer draws it,
summed along the normal, is how far the object's outline is outside of the shape's there. Place and size are fitted
before what is left is looked at, and corners are left out: softness moves them.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from functools import cache

import numpy as np

from demo.pictures import HOLE, outline


@dataclass(frozen=True)
class Bends:
    """How far an outline is from its shape's, as parts of the radius. mean: the root of the mean square, of a circle
    how little it is round, of sides how little they are straight. most: at the worst place. uneven: how far the left
    half is from the mirrored right one, at the worst place, by each of them. stretched: how much longer it is in one
    direction than across, beyond the shape's own proportions."""

    mean: float
    most: float
    uneven: float
    stretched: float

    def within(self, limits: Bends) -> bool:
        """Whether none of them is larger than its limit."""
        return all(own <= most for own, most in zip(astuple(self), astuple(limits), strict=True))


# What still looks clean, by eye: docs/demo.md tells how these were chosen. Rendered shapes have about half or less.
LIMITS = {
    "circle": Bends(0.014, 0.045, 0.020, 0.06),
    "square": Bends(0.015, 0.050, 0.022, 0.06),
    "triangle": Bends(0.020, 0.085, 0.035, 0.08),
    "star": Bends(0.032, 0.090, 0.036, 0.035),
    "ring": Bends(0.019, 0.050, 0.028, 0.05),
    "cross": Bends(0.024, 0.075, 0.030, 0.08),
    "diamond": Bends(0.016, 0.065, 0.020, 0.08),
    "heart": Bends(0.020, 0.080, 0.025, 0.08),
}

# Parts of the radius: between two places on the outline, ...
_STEP = 0.03
# ... how far from it the object is compared to both sides, and how near to a corner it is not.
_REACH, _CORNER = 0.3, 0.12
_CORNER_TURN = 25  # degrees; the renderer's circles and hearts turn by less
_SMOOTHED = 5  # places that a bend is the mean of
_SAMPLES = 25  # along a normal


def bends(shape: str, difference: np.ndarray, radius: float) -> Bends:
    """Measure an object of this shape. difference: (side, side), how much more of each pixel the object covers than the
    shape whose circle has this radius, in pixels, around the middle."""
    walk = _walk(shape)
    along = np.linspace(-_REACH, _REACH, _SAMPLES)
    at = (walk.places[:, None] + walk.normals[:, None] * along[:, None]) * radius + len(difference) / 2
    outside = _sampled(difference, at).mean(axis=1) * 2 * _REACH
    for part in walk.parts:
        outside[part] = _smoothed(outside[part])
    # What a shift of the shape, another size of it and a stretch along and between the axes change, at each place.
    (x, y), (u, v) = walk.places.T, walk.normals.T
    changes = np.column_stack([u, v, x * u + y * v, x * u - y * v, x * v + y * u])
    shift_and_size = _least_squares(changes[:, :3], outside, walk.sides)
    stretch = _least_squares(changes, outside, walk.sides)[3:]
    left = outside - changes[:, :3] @ shift_and_size
    uneven = (left - left[walk.mirrored]) / 2
    sides = left[walk.sides]
    return Bends(
        mean=float(np.sqrt((sides**2).mean())),
        most=float(np.abs(sides).max()),
        uneven=float(np.abs(uneven[walk.sides]).max()),
        stretched=2 * float(np.hypot(*stretch)),
    )


@dataclass(frozen=True)
class _Walk:
    """Places on a shape's outline, in a circle of radius 1. places, normals: (places, 2), the latter of length 1 and
    outwards. parts: the places of each closed line. sides: those that are at no corner. mirrored: of each place the one
    that it is across from."""

    places: np.ndarray
    normals: np.ndarray
    parts: tuple[slice, ...]
    sides: np.ndarray
    mirrored: np.ndarray


@cache
def _walk(shape: str) -> _Walk:
    line = np.array(outline(shape))
    lines = [line, HOLE * line] if shape == "ring" else [line]
    places, normals, sides = (np.concatenate(each) for each in zip(*map(_along, lines), strict=True))
    ends = np.cumsum([len(_along(each)[0]) for each in lines])
    mirror = np.array([-1, 1])
    apart = ((places[:, None] - mirror * places) ** 2 + 10 * (normals[:, None] - mirror * normals) ** 2).sum(axis=2)
    return _Walk(
        places,
        normals,
        parts=tuple(slice(start, end) for start, end in zip((0, *ends), ends, strict=False)),
        sides=sides,
        mirrored=apart.argmin(axis=1),
    )


def _along(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places along a closed line, their normals, and which are at no corner."""
    edges = np.roll(corners, -1, axis=0) - corners
    lengths = np.hypot(*edges.T)
    directions = edges / lengths[:, None]
    count = round(lengths.sum() / _STEP)
    at = (np.arange(count) + 0.5) * lengths.sum() / count
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    edge = np.searchsorted(starts, at, side="right") - 1
    places = corners[edge] + directions[edge] * (at - starts[edge])[:, None]
    turns = (directions * np.roll(directions, 1, axis=0)).sum(axis=1)  # cosines
    sharp = corners[turns < math.cos(math.radians(_CORNER_TURN))]
    apart = np.linalg.norm(places[:, None] - sharp, axis=2)
    return places, directions[edge] @ np.array([[0, -1], [1, 0]]), (apart > _CORNER).all(axis=1)


def _least_squares(changes: np.ndarray, outside: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """How much of each change explains the most of it."""
    return np.asarray(np.linalg.lstsq(changes[sides], outside[sides], rcond=None)[0])


def _sampled(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values between those of pixels, at x, y from the left upper corner."""
    x, y = np.moveaxis(np.clip(at - 0.5, 0, len(values) - 1.001), -1, 0)
    column, row = x.astype(int), y.astype(int)
    right, down = x - column, y - row
    upper = values[row, column] * (1 - right) + values[row, column + 1] * right
    lower = values[row + 1, column] * (1 - right) + values[row + 1, column + 1] * right
    return np.asarray(upper * (1 - down) + lower * down)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Means of neighbours on a closed line."""
    half = _SMOOTHED // 2
    return np.convolve(
        np.concatenate([values[-half:], values, values[:half]]), np.full(_SMOOTHED, 1 / _SMOOTHED), "valid"
    )
