"""The judge of the demo's pictures, on shapes that are nearly the demo's: lopsided, bent, dented, stretched."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from demo.captions import SHAPES
from demo.judge import look
from demo.outline_fit import LIMITS
from demo.pictures import HOLE, PALETTE, Placed, outline, paint
from tests.demo.judge.judged import BLUE, RED, shape_seen

RADII = (13, 20, 34)
HIDDEN = 4  # samples a pixel


@pytest.mark.parametrize("shape", SHAPES)
def test_a_clean_shape_is_seen_anywhere_at_any_size_and_softness(shape: str) -> None:
    source = random.Random(shape)
    for radius in (*RADII, 13 + 27 * source.random()):
        place = (48 + source.random(), 48 + source.random())
        image = paint([Placed(shape, *place, radius, RED)], BLUE, 96, 96)
        for softness in (0, 0.05 * radius):
            assert shape_seen(image.filter(ImageFilter.GaussianBlur(softness))) == shape, (radius, place, softness)


def lines(shape: str) -> list[np.ndarray]:
    """A shape's closed lines, of points that are near each other."""
    corners = np.array(outline(shape))
    parts = np.linspace(0, 1, 200 // len(corners) + 1, endpoint=False)[:, None]
    dense = np.concatenate([a + (b - a) * parts for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)])
    return [dense, HOLE * dense] if shape == "ring" else [dense]


def drawn(points: list[np.ndarray], radius: float) -> Image.Image:
    """Closed lines in a circle of this radius around a place that is on no pixel: what is in the first and not in the
    second, antialiased."""
    image = Image.new("RGB", (96 * HIDDEN, 96 * HIDDEN), BLUE)
    for line, colour in zip(points, (RED, BLUE), strict=False):
        at = (line * radius + (48.3, 47.6)) * HIDDEN
        ImageDraw.Draw(image).polygon([(x, y) for x, y in at.tolist()], colour)
    return image.reduce(HIDDEN)


def dented(shape: str, where: float, depth: float, width: float = 0.25) -> list[np.ndarray]:
    """With a dent, or a bump where depth is negative, at this part of the outer line; a bell of this width."""
    (line, *inner) = lines(shape)
    middle = line[round(where * len(line)) % len(line)]
    inwards = -middle / np.hypot(*middle)
    bell = np.exp(-((line - middle) ** 2).sum(axis=1) / width**2)
    return [line + depth * bell[:, None] * inwards, *inner]


def bulging(shape: str, most: float) -> list[np.ndarray]:
    """With sides that are curved outwards, or inwards where `most` is negative, by this much in their middle."""
    corners = np.array(outline(shape))
    parts = np.linspace(0, 1, 20, endpoint=False)[:, None]
    curved = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        outwards = np.array([b[1] - a[1], a[0] - b[0]]) / np.hypot(*(b - a))
        curved.append(a + (b - a) * parts + 4 * most * parts * (1 - parts) * outwards)
    return [np.concatenate(curved)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", RADII)
def test_the_lines_that_are_bent_here_are_those_of_a_clean_shape(shape: str, radius: float) -> None:
    assert shape_seen(drawn(lines(shape), radius)) == shape


STRETCHED, SKEWED = np.diag([1.15, 1.0]), np.array([[1.0, 0.0], [0.18, 1.0]])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", RADII)
def test_a_shape_that_is_stretched_or_skewed_is_none(shape: str, radius: float) -> None:
    for matrix in (STRETCHED, SKEWED):
        assert shape_seen(drawn([line @ matrix for line in lines(shape)], radius)) != shape


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("depth", [0.25, -0.25])
def test_a_shape_with_a_dent_or_a_bump_is_none(shape: str, depth: float) -> None:
    for where in (0.06, 0.3, 0.44, 0.77):
        assert shape_seen(drawn(dented(shape, where, depth), 20)) != shape, where


@pytest.mark.parametrize("shape", ["square", "triangle", "diamond"])
def test_a_shape_with_curved_sides_is_none(shape: str) -> None:
    for most in (0.1, -0.1):
        assert shape_seen(drawn(bulging(shape, most), 20)) != shape


def polygon(corners: int) -> np.ndarray:
    turns = 2 * math.pi * np.arange(corners) / corners
    return np.column_stack([np.sin(turns), -np.cos(turns)])


@pytest.mark.parametrize("radius", RADII)
def test_what_is_not_round_is_no_circle_and_no_ring(radius: float) -> None:
    (circle,) = lines("circle")
    capsule = np.column_stack([0.8 * circle[:, 0], circle[:, 1] + 0.2 * np.sign(circle[:, 1])])
    flat = np.column_stack([circle[:, 0], np.minimum(circle[:, 1], 0.85)])
    egg = np.column_stack([circle[:, 0], np.where(circle[:, 1] > 0, 1.25, 1) * circle[:, 1]])
    not_round = {"hexagon": polygon(6), "heptagon": polygon(7), "capsule": capsule, "flat": flat, "egg": egg}
    for name, line in not_round.items():
        assert shape_seen(drawn([line], radius)) != "circle", name
        assert shape_seen(drawn([line, HOLE * circle], radius)) != "ring", name
    for inner in (HOLE * polygon(4), HOLE * circle @ STRETCHED, HOLE * circle + (0.12, 0)):
        assert shape_seen(drawn([circle, inner], radius)) != "ring"


@pytest.mark.parametrize("shape", ["heart", "star", "triangle", "cross", "square", "diamond"])
@pytest.mark.parametrize("radius", RADII)
def test_halves_that_are_uneven_are_none(shape: str, radius: float) -> None:
    (line,) = lines(shape)
    wide, high = line.copy(), line.copy()
    wide[line[:, 0] > 0, 0] *= 1.25
    high[line[:, 0] > 0, 1] *= 1.25
    for uneven in (wide, high):
        assert shape_seen(drawn([uneven], radius)) != shape


def test_the_softest_edges_do_not_hide_what_is_bent() -> None:
    for shape in ("circle", "square"):
        image = drawn([line @ STRETCHED for line in lines(shape)], 34).filter(ImageFilter.GaussianBlur(2))
        assert [item.shape for item in look(image).objects] != [shape]


def test_every_shape_has_its_limits() -> None:
    assert LIMITS.keys() == set(SHAPES)
    assert PALETTE["red"] == RED
