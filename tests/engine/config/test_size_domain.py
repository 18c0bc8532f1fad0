"""Which sizes a checkpoint says that it draws well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo.pictures import SIZES
from engine.config.demo_checkpoints import DEMO_CHECKPOINTS
from engine.config.json_fields import JsonFields
from engine.config.model_config import ModelConfig
from engine.config.size_domain import SizeDomain, read_size_domain
from engine.errors import CheckpointError

INDEX = Path("model_index.json")
DOMAIN = SizeDomain(96, 256, 128, 128)


def read(**values: Any) -> SizeDomain | None:
    return read_size_domain(JsonFields(INDEX, values), 128, 192)


def test_a_size_outside_is_told_the_range_and_the_checkpoints_own() -> None:
    assert read(good_sides=[96, 256]) == SizeDomain(96, 256, 128, 192)
    for size in ((96, 96), (256, 256), (96, 256), (128, 128)):
        assert DOMAIN.warning(*size) is None
    for size in ((80, 128), (128, 80), (272, 128), (128, 272), (1024, 1024), (80, 272)):
        assert DOMAIN.warning(*size) == (
            f"{size[0]} × {size[1]} is outside of what the model was made for: sides from 96 to 256 pixels, by default "
            "128 × 128"
        )


def test_without_sides_any_size_will_do() -> None:
    assert read() is read(good_sides=None) is None


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        (96, "a list of 2 whole numbers from 1"),
        ([96], "a list of 2 whole numbers from 1"),
        ([96, 128, 256], "a list of 2 whole numbers from 1"),
        ([96, 256.0], "a list of 2 whole numbers from 1"),
        ([0, 256], "a list of 2 whole numbers from 1"),
        ([True, 256], "a list of 2 whole numbers from 1"),
        ([256, 96], "the shortest and the longest side, with the default 128 × 192 between them"),
        ([144, 256], "the shortest and the longest side, with the default 128 × 192 between them"),
        ([96, 176], "the shortest and the longest side, with the default 128 × 192 between them"),
    ],
)
def test_what_does_not_fit_is_named(sides: object, expected: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^model_index.json: good_sides: .*, expected {expected}, found "):
        read(good_sides=sides)


def test_the_nearest_size_has_the_shape_that_was_asked_for_where_there_is_room() -> None:
    nearest = {
        (1024, 1024): (128, 128), (64, 64): (128, 128), (1536, 1024): (192, 128), (1024, 1536): (128, 192),
        (1792, 1024): (224, 128), (4096, 64): (256, 128), (64, 4096): (128, 256),
    }  # fmt: skip
    for asked, size in nearest.items():
        assert DOMAIN.nearest(*asked, 16) == size
    assert SizeDomain(96, 250, 128, 192).nearest(4096, 64, 16) == (240, 128)


def test_the_demos_say_the_sides_that_they_were_trained_on() -> None:
    trained = [side for size in SIZES for side in size]
    for folder in DEMO_CHECKPOINTS.values():
        domain = ModelConfig.from_folder(folder).size_domain
        assert domain is not None
        assert (domain.least, domain.most) == (min(trained), max(trained))
