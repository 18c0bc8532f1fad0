"""Where objects are in pictures of prompts."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest

from demo.captions import PLACES, Kind, Prompt, prompts
from demo.pictures import SIZES, place_objects

CIRCLE = Kind("red", "circle")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_objects_are_inside_and_apart(width: int, height: int) -> None:
    source = random.Random()
    for prompt in prompts(source.randrange(2**32), 300, kept_out=False):
        placed = place_objects(prompt, width, height, source)
        for item in placed:
            assert item.radius <= item.x <= width - item.radius, prompt
            assert item.radius <= item.y <= height - item.radius, prompt
        for one, other in combinations(placed, 2):
            assert math.dist((one.x, one.y), (other.x, other.y)) >= one.radius + other.radius + 4, prompt


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_only_one_object_of_which_nothing_is_said_is_in_several_places(width: int, height: int) -> None:
    source = random.Random(0)

    def spots(prompt: Prompt) -> set[tuple[float, ...]]:
        placed = [place_objects(prompt, width, height, source) for _ in range(200)]
        return {tuple(part for item in items for part in (item.x, item.y)) for items in placed}

    assert len(spots(Prompt("blue", CIRCLE))) == 1 + len(PLACES)
    assert len(spots(Prompt("blue", CIRCLE, place="left"))) == 1
    assert len(spots(Prompt("blue", CIRCLE, size="large"))) == 1
    assert len(spots(Prompt("blue", CIRCLE, count=3))) == 1
    assert len(spots(Prompt("blue", CIRCLE, relation="above", second=Kind("green", "star")))) == 1


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_sizes_are_of_radii_and_places_of_edges(width: int, height: int) -> None:
    source = random.Random(0)
    small, plain, large = (
        place_objects(Prompt("blue", CIRCLE, size=size), width, height, source)[0].radius
        for size in ("small", "", "large")
    )
    assert small < plain < large
    for place in PLACES:
        (item,) = place_objects(Prompt("blue", CIRCLE, place=place), width, height, source)
        beside = {"left": item.x, "right": width - item.x, "top": item.y, "bottom": height - item.y}
        assert min(beside, key=lambda edge: beside[edge]) == place
