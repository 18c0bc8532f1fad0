"""The judge of the demo's pictures, on shapes that are none of the demo's."""

from __future__ import annotations

import math

import pytest
from PIL import Image, ImageDraw

from demo.captions import SHAPES
from demo.judge import look
from demo.pictures import PALETTE, Placed, outline, paint
from tests.demo.judge.judged import BLUE, GREEN, RED, RED_CIRCLE, asked, shape_seen, wrong


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [13, 40])
def test_a_shape_with_a_piece_missing_or_too_much_is_none(shape: str, radius: float) -> None:
    """A square of a third of the radius, at several places of the outline."""
    size, middle = 128, 64.0
    corners = outline(shape)
    for u, v in corners[:: max(1, len(corners) // 5)]:
        image = paint([Placed(shape, middle, middle, radius, RED)], BLUE, size, size)
        length = math.hypot(u, v)
        for fill, depth in ((BLUE, length - 0.2), (RED, length + 0.18)):
            damaged = image.copy()
            x, y = (middle + radius * part / length * depth for part in (u, v))
            half = radius / 5
            ImageDraw.Draw(damaged).rectangle((x - half, y - half, x + half, y + half), fill=fill)
            assert [item.shape for item in look(damaged).objects] != [shape], (u, v, fill)


def polygon(points: list[tuple[float, float]], radius: float = 40, size: int = 128) -> Image.Image:
    image = Image.new("RGB", (size * 4, size * 4), BLUE)
    ImageDraw.Draw(image).polygon([(size * 2 + x * radius * 4, size * 2 + y * radius * 4) for x, y in points], RED)
    return image.reduce(4)


def round_points(power: float, height: float = 1.0) -> list[tuple[float, float]]:
    """An ellipse at power 2; at higher ones it nears a rectangle."""
    turns = (2 * math.pi * i / 120 for i in range(120))
    return [
        (
            math.copysign(abs(math.cos(t)) ** (2 / power), math.cos(t)),
            height * math.copysign(abs(math.sin(t)) ** (2 / power), math.sin(t)),
        )
        for t in turns
    ]


def turned(shape: str, degrees: float) -> list[tuple[float, float]]:
    angle = math.radians(degrees)
    sine, cosine = math.sin(angle), math.cos(angle)
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in outline(shape)]


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(round_points(4), id="between circle and square"),
        pytest.param(round_points(2, 0.8), id="ellipse"),
        pytest.param([(0.86 * x, y) for x, y in round_points(1.4)], id="between circle and diamond"),
        pytest.param([(x, y * 0.8) for x, y in outline("square")], id="rectangle"),
        pytest.param(
            [(math.sin(2 * math.pi * i / 5), -math.cos(2 * math.pi * i / 5)) for i in range(5)], id="pentagon"
        ),
        pytest.param(turned("triangle", 180), id="triangle upside down"),
        pytest.param(turned("heart", 180), id="heart upside down"),
        pytest.param(turned("star", 36), id="star upside down"),
        pytest.param(turned("square", 45), id="square on its corner"),
        pytest.param(turned("cross", 45), id="cross turned"),
        pytest.param([point for point in round_points(2) if point[0] < 0.01], id="half a circle"),
        pytest.param([(-0.5, -0.8), (0.5, -0.8), (0.9, 0.8), (-0.9, 0.8)], id="trapezium"),
    ],
)
@pytest.mark.parametrize("radius", [15, 40])
def test_other_shapes_are_none(points: list[tuple[float, float]], radius: float) -> None:
    assert shape_seen(polygon(points, radius)) == ""


def test_an_object_of_two_colours_has_no_shape() -> None:
    image = paint([Placed("circle", 48, 48, 30, RED)], BLUE, 96, 96)
    other = paint([Placed("circle", 48, 48, 30, PALETTE["orange"])], BLUE, 96, 96)
    image.paste(other.crop((52, 0, 96, 96)), (52, 0))
    assert wrong(RED_CIRCLE, image) == {"shape"}


@pytest.mark.parametrize("other", [RED, GREEN, PALETTE["purple"]])
@pytest.mark.parametrize("shape", ["circle", "square"])
def test_objects_that_touch_are_wrong(other: tuple[int, int, int], shape: str) -> None:
    reach = {"circle": 1.0, "square": 0.8}[shape] * 20
    for overlap in (0, 3):
        objects = [Placed(shape, 64 - reach + overlap, 64, 20, RED), Placed(shape, 64 + reach, 64, 20, other)]
        assert [item.shape for item in look(paint(objects, BLUE, 128, 128)).objects] != [shape, shape]


@pytest.mark.parametrize("upright", [False, True])
def test_a_long_bar_is_no_shape(upright: bool) -> None:
    """A triangle with a bar's area and centre of gravity would have its own centre outside of the bar."""
    image = Image.new("RGB", (192, 192), PALETTE["blue"])
    ImageDraw.Draw(image).rectangle((0, 0, 4, 192) if upright else (0, 0, 192, 4), PALETTE["yellow"])
    for shape in SHAPES:
        assert "shape" in wrong(asked(f"a yellow {shape} on a blue background"), image)
