"""Requests whose steps are saved, from a client through the ranks and back."""

from __future__ import annotations

import pytest

from engine.config.model_config import ModelConfig
from launcher import Client
from launcher.messages.message_parts import Computed
from launcher.requests.image_metadata import read_made

PROMPT = "a red circle on a blue background"


def test_each_image_says_which_of_its_steps_were_computed(client: Client, demo: ModelConfig) -> None:
    blocks = demo.transformer.num_layers
    cache = {"method": "velocity", "warmup_steps": 2, "max_consecutive": 2}
    result = client.generate(PROMPT, seed=5, num_images=2, cache=cache)
    computed = Computed(steps=tuple((blocks * whole,) for whole in (1, 1, 0, 0, 1, 0, 0, 1)), blocks=blocks)
    assert result.computed == [computed, computed]
    assert result.warnings == ()
    for image in result.images:
        made = read_made(image)
        assert made is not None
        assert made["cache"] == {**cache, "order": 1, "max_cached": 200}
        assert made["computed"] == {"prompt": "1-2,5,8", "block_evaluations": f"{4 * blocks} of {8 * blocks}"}


def test_images_of_which_all_is_computed_say_nothing_of_it(client: Client) -> None:
    whole = client.generate(PROMPT, seed=5, steps=2, cache="off", guidance_until=0.5)
    assert whole.computed == [None]
    assert whole.warnings == (
        "guidance_from and guidance_until were ignored: guidance is 0, so that there is none to leave out",
    )
    made = read_made(whole.image)
    assert made is not None
    assert made.keys().isdisjoint({"cache", "computed", "guidance_until"})
    assert client.generate(PROMPT, seed=5, steps=2).files == whole.files


@pytest.mark.parametrize("outside", ["off", "last"])
def test_the_negative_prompt_is_left_out_outside_the_window(client: Client, demo: ModelConfig, outside: str) -> None:
    blocks = demo.transformer.num_layers
    result = client.generate(
        PROMPT, seed=5, steps=4, guidance=1.0, guidance_from=0.25, guidance_until=0.75, guidance_outside=outside
    )
    steps = ((blocks, 0), (blocks, blocks), (blocks, blocks), (blocks, 0))
    assert result.computed == [Computed(steps=steps, blocks=blocks)]
