"""Which of the demo's shapes an object is: every shape, as the renderer draws it, is laid over the object at the place
and radius that the object's own area and centre of gravity give, and the wrong pixels are counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from demo.captions import SHAPES
from demo.outline_fit import LIMITS, bends
from demo.pictures import Placed, paint

# Colours that differ less, in RGB, are the same within an object: noise, JPEG, a VAE.
DRIFT = 15.0
# An object is a shape when its outline is off by this part of the radius, or less, on average, ...
DEVIATION = 0.035
# ... when every other shape has at least this many times as many wrong pixels, ...
DISTINCT = 1.75
# ... when its outline is clean (`demo/outline_fit.py`), ...
# ... and when of no spot in it more than this part is wrong: a square, its side this part of the radius.
SPOT, SPOT_WRONG = 0.25, 0.5

# Objects and shapes are compared in a frame of this side, where the circle around a shape has this radius, in pixels.
_FRAME, _RADIUS = 56, 20
# Deviations of the Gaussians that soften a shape's edges: an object may be as soft as any of them.
_SOFTNESS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Blot:
    """One object of a picture. pixels: (height, width, 3), 0 … 255, the picture with nothing in it but this object on
    its plain background. rgb, background: their colours."""

    pixels: np.ndarray
    rgb: np.ndarray
    background: np.ndarray


@dataclass(frozen=True)
class Fit:
    """A shape laid over an object. x, y, radius: as in `demo.pictures.Placed`. deviation: wrong pixels by pixels of
    outline, a part of the radius. wrong: wrong pixels by pixels of the shape. spot: as `SPOT_WRONG` limits it."""

    shape: str
    x: float
    y: float
    radius: float
    deviation: float
    wrong: float
    spot: float


def fit_shape(blot: Blot, *, clean: bool = True) -> Fit | None:
    """The shape that the object is; None if it is none, nearly as much one as another, or, with `clean`, not a clean
    one."""
    best, second = sorted(_fits(blot), key=lambda fit: fit.wrong)[:2]
    good = best.deviation <= DEVIATION and second.wrong >= DISTINCT * best.wrong and best.spot <= SPOT_WRONG
    if good and clean:
        good = bends(best.shape, _difference(blot, best), _RADIUS).within(LIMITS[best.shape])
    return best if good else None


@dataclass(frozen=True)
class _Pattern:
    """A shape of radius 1. x, y: the centre of gravity, seen from the circle's centre. cover: how much of each pixel of
    the frame the shape covers, (softness, frame, frame)."""

    area: float
    outline: float
    x: float
    y: float
    cover: np.ndarray


@cache
def _pattern(shape: str) -> _Pattern:
    middle = _FRAME / 2
    image = paint([Placed(shape, middle, middle, _RADIUS, (255, 255, 255))], (0, 0, 0), _FRAME, _FRAME).convert("L")
    cover = np.stack([np.asarray(image.filter(ImageFilter.GaussianBlur(blur))) for blur in _SOFTNESS]) / 255
    sharp = np.asarray(image) / 255
    area, x, y = _moments(sharp)
    return _Pattern(
        area=area / _RADIUS**2,
        outline=float(np.hypot(*np.gradient(cover[0])).sum()) / _RADIUS,
        x=(x - middle) / _RADIUS,
        y=(y - middle) / _RADIUS,
        cover=cover,
    )


def _moments(cover: np.ndarray) -> tuple[float, float, float]:
    """Area and centre of gravity."""
    height, width = cover.shape
    area = float(cover.sum())
    x = float(cover.sum(axis=0) @ (np.arange(width) + 0.5)) / area
    y = float(cover.sum(axis=1) @ (np.arange(height) + 0.5)) / area
    return area, x, y


def _fits(blot: Blot) -> list[Fit]:
    direction = blot.rgb - blot.background
    area, x, y = _moments(_cover(blot.pixels, blot))
    fits = []
    for shape in SHAPES:
        pattern = _pattern(shape)
        radius = float(np.sqrt(area / pattern.area))
        centre = x - radius * pattern.x, y - radius * pattern.y
        expected = pattern.cover[..., None] * direction
        off = np.linalg.norm(_framed(blot, *centre, radius) - blot.background - expected, axis=3)
        wrong = np.clip((off - DRIFT) / np.linalg.norm(direction), 0, 1)
        least = wrong[np.argmin(wrong.sum(axis=(1, 2)))]
        fits.append(
            Fit(
                shape,
                *centre,
                radius,
                deviation=float(least.sum()) / pattern.outline / _RADIUS**2,
                wrong=float(least.sum()) / pattern.area / _RADIUS**2,
                spot=float(_means(least, round(SPOT * _RADIUS)).max()),
            )
        )
    return fits


def _difference(blot: Blot, fit: Fit) -> np.ndarray:
    """How much more of each pixel of the frame the object covers than the shape, in the softness that is nearest."""
    differences = _cover(_framed(blot, fit.x, fit.y, fit.radius), blot) - _pattern(fit.shape).cover
    return np.asarray(differences[np.argmin(np.abs(differences).sum(axis=(1, 2)))])


def _cover(pixels: np.ndarray, blot: Blot) -> np.ndarray:
    """How much of each pixel the object covers, from its colour's share: 0 … 1."""
    direction = blot.rgb - blot.background
    return np.asarray(np.clip((pixels - blot.background) @ direction / (direction @ direction), 0, 1))


def _framed(blot: Blot, x: float, y: float, radius: float) -> np.ndarray:
    """The object with this circle around it in the middle of the frame, (frame, frame, 3)."""
    reach = radius * _FRAME / 2 / _RADIUS
    height, width, _ = blot.pixels.shape
    outside = max(0.0, -x, -y, x - width, y - height)  # of a blot that is long and thin
    pad = int(np.ceil(reach + outside)) + 1
    left, top = x - reach + pad, y - reach + pad
    channels = [
        Image.fromarray(np.pad(channel, pad, constant_values=empty)).resize(
            (_FRAME, _FRAME), Image.Resampling.BILINEAR, box=(left, top, left + 2 * reach, top + 2 * reach)
        )
        for channel, empty in zip(blot.pixels.transpose(2, 0, 1), blot.background, strict=True)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def _means(values: np.ndarray, side: int) -> np.ndarray:
    """Means over all squares of this side."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    return np.asarray((sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2)
