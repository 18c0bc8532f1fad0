"""Pictures of prompts, drawn with Pillow: objects on a plain background, antialiased."""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from demo.captions import PLACES, Prompt

PALETTE = {
    "red": (218, 34, 34),
    "green": (36, 150, 62),
    "blue": (40, 76, 218),
    "yellow": (244, 216, 46),
    "orange": (240, 134, 24),
    "purple": (126, 52, 176),
    "pink": (246, 150, 190),
    "cyan": (64, 208, 222),
    "white": (246, 246, 246),
    "black": (18, 18, 18),
    "brown": (120, 70, 32),
    "gray": (136, 136, 136),
}
COLOUR_JITTER = 4  # how much each channel of a colour varies

# (width, height): the sizes that the models are trained at, 96 to 256 pixels, upright, square and wide.
SIZES = (
    (96, 96),
    (128, 128),
    (128, 96),
    (96, 128),
    (192, 128),
    (128, 192),
    (256, 128),
    (128, 256),
    (192, 192),
    (256, 256),
)

# In pixels, the same in pictures of every size. Centres lie on a grid of 16 pixels, the transformer's patches, as far
# as they can, and only one object of which neither size nor place is said is anywhere, in one of five places: several
# objects would have to agree on where they are. So a shape has few different latents, and where it is is decided while
# there is still much noise: a small model learns that much sooner than shapes anywhere, of any size.
GRID = 16
RADII = {"small": 14, "": 20, "large": 34}  # three are small, to fit
EDGES = {"small": 16, "": 32, "large": 40}  # how far the centre is from the edge that an object is at

HOLE = 0.55  # radius of a ring's, as a part of its own
LINE = 0.2  # width of the outlines, as a part of the radius
LINE_COLOUR = (12, 12, 12)

_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Placed:
    """An object: the centre and radius in pixels of the picture, the colour in 0 … 255."""

    shape: str
    x: float
    y: float
    radius: float
    rgb: tuple[int, int, int]


def place_objects(prompt: Prompt, width: int, height: int, source: random.Random) -> list[Placed]:
    """Where the objects of the prompt are in one picture of it, in the prompt's order. The sides are of `SIZES`."""
    count = len(prompt.objects)
    if count == 1:
        edge, place = EDGES[prompt.size], prompt.place or ("" if prompt.size else source.choice(("", *PLACES)))
        x = {"left": edge, "right": width - edge}.get(place, width // 2)
        y = {"top": edge, "bottom": height - edge}.get(place, height // 2)
        spots = [(x, y)]
    else:
        upright = prompt.relation in ("above", "below")
        length, across = (height, width) if upright else (width, height)
        step, offsets = (length // 4, (-1, 1)) if count == 2 else (round(length / 3 / GRID) * GRID, (-1, 0, 1))
        along = [length // 2 + offset * step for offset in offsets]
        spots = [(across // 2, at) if upright else (at, across // 2) for at in along]
        if prompt.relation in ("right of", "below"):
            spots.reverse()
    radius = RADII["small" if count == 3 else prompt.size]
    return [
        Placed(kind.shape, x, y, radius, _colour(kind.colour, source))
        for kind, (x, y) in zip(prompt.objects, spots, strict=True)
    ]


def _colour(name: str, source: random.Random) -> tuple[int, int, int]:
    red, green, blue = (
        min(255, max(0, part + source.randint(-COLOUR_JITTER, COLOUR_JITTER))) for part in PALETTE[name]
    )
    return red, green, blue


def draw(prompt: Prompt, width: int, height: int, source: random.Random, outlined: bool = False) -> Image.Image:
    """One picture of the prompt, RGB. outlined: every object has a black line around it."""
    background = _colour(prompt.background, source)
    return paint(place_objects(prompt, width, height, source), background, width, height, outlined)


def paint(
    objects: list[Placed], background: tuple[int, int, int], width: int, height: int, outlined: bool = False
) -> Image.Image:
    """These objects on a background, the later over the earlier."""
    scale = _SUPERSAMPLING
    image = Image.new("RGB", (width * scale, height * scale), background)
    pen = ImageDraw.Draw(image)
    for item in objects:
        _draw_shape(pen, item, scale, background, LINE_COLOUR if outlined else None)
    return image.reduce(scale)


def _draw_shape(
    pen: ImageDraw.ImageDraw,
    item: Placed,
    scale: int,
    background: tuple[int, int, int],
    line: tuple[int, int, int] | None,
) -> None:
    x, y, r = item.x * scale, item.y * scale, item.radius * scale
    width = round(LINE * r)
    if item.shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), item.rgb, line, width)
        if item.shape == "ring":
            inner = HOLE * r
            pen.ellipse((x - inner, y - inner, x + inner, y + inner), background, line, width)
        return
    corners = [(x + r * u, y + r * v) for u, v in outline(item.shape)]
    pen.polygon(corners, fill=item.rgb)
    if line is not None:
        pen.line([*corners, *corners[:2]], line, width, joint="curve")


def outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape in a circle of radius 1, y downwards; a circle's or ring's as a polygon."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "diamond":
        return [(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)]
    if shape == "cross":
        arm, end = 0.3, 0.95
        return [
            (-arm, -end), (arm, -end), (arm, -arm), (end, -arm), (end, arm), (arm, arm),
            (arm, end), (-arm, end), (-arm, arm), (-end, arm), (-end, -arm), (-arm, -arm),
        ]  # fmt: skip
    if shape == "star":
        radii = (1.0, 0.42)
        return [
            (radii[i % 2] * math.sin(i * math.pi / 5), 0.05 - radii[i % 2] * math.cos(i * math.pi / 5))
            for i in range(10)
        ]
    if shape == "heart":
        turns = (2 * math.pi * i / 60 for i in range(60))
        return [
            (
                0.95 * math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.12,
            )
            for t in turns
        ]
    return [(math.sin(2 * math.pi * i / 60), -math.cos(2 * math.pi * i / 60)) for i in range(60)]


def pixels(image: Image.Image) -> np.ndarray:
    """(3, height, width) float32 in -1 … 1, as the VAE takes it."""
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
