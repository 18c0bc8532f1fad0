"""Requests say the same in other programs' names."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import ArgumentError
from launcher.messages.parameter_names import GUIDANCE_IS_OFF, in_own_names, read_size


@pytest.mark.parametrize(
    ("given", "own", "warnings"),
    [
        ({"num_inference_steps": 4, "seed": 1}, {"steps": 4, "seed": 1}, ()),
        ({"n": 2, "num_images_per_prompt": 2, "num_images": 2}, {"num_images": 2}, ()),
        ({"guidance_scale": 2.5, "guidance": None}, {"guidance": 2.5}, ()),
        ({"guidance_scale": 1}, {"guidance": 0.0}, (GUIDANCE_IS_OFF,)),
        ({"guidance": 1.0}, {"guidance": 1.0}, ()),
        ({"size": "512×768", "width": 512}, {"width": 512, "height": 768}, ()),
        ({"size": "auto", "height": 64}, {"height": 64}, ()),
    ],
)
def test_other_names_become_ours(given: dict[str, Any], own: dict[str, Any], warnings: tuple[str, ...]) -> None:
    assert in_own_names(given) == (own, warnings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 8, "num_inference_steps": 4}, "steps 8 contradicts num_inference_steps, which says 4"),
        ({"n": 2, "num_images_per_prompt": 3}, "num_images 2 contradicts num_images_per_prompt, which says 3"),
        ({"size": "512x768", "height": 512}, "height 512 contradicts size, which says 768"),
        ({"guidance_scale": 1, "guidance": 1.0}, "guidance 1.0 contradicts guidance_scale 1, which is off"),
        ({"size": 512}, "size must be WIDTHxHEIGHT, as 512x768, got 512"),
    ],
)
def test_names_that_contradict_each_other_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        in_own_names(given)


def test_a_size_may_be_written_in_several_ways() -> None:
    assert {read_size("size", text) for text in ("512x64", "512X64", "512×64", "512*64")} == {(512, 64)}
    assert read_size("size", "512") == (512, 512)
    for text in ("", "x", "512x", "axb", "٦٤x٦٤", "-512x64", "512 64", "1e3", "512x64x3"):
        with pytest.raises(ArgumentError, match="size must be WIDTHxHEIGHT, as 512x768, got "):
            read_size("size", text)
