"""What a user is told of an image that came out as no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from engine.config.demo_checkpoints import DEMO_LORAS
from engine.config.model_config import ModelConfig
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.message_parts import LoraChoice
from launcher.requests.check import check
from launcher.requests.not_finite import no_picture


@pytest.mark.parametrize(
    ("asked", "merged", "advice"),
    [
        ({}, (), "the checkpoint may be damaged"),
        ({"guidance": 12}, (), "try less guidance than 12"),
        ({"loras": {"bold": 10}}, (), "try a smaller strength of the LoRA 'bold' at 10"),
        (
            {"loras": {"bold": 10, "meek": -0.5, "off": 0}, "guidance": 3, "mu": 9},
            (),
            "try smaller strengths of the LoRAs 'bold' at 10 and 'meek' at -0.5, or less guidance than 3, "
            "or another mu than 9",
        ),
        ({}, (("/srv/secret/a.safetensors", 2.5),), "try a smaller strength of the merged LoRA 'a.safetensors' at 2.5"),
        (
            {},
            ((str(DEMO_LORAS["demo-outlined"]), 9.0),),
            "try a smaller strength of the merged LoRA 'demo-outlined' at 9",
        ),
        ({"loras": {"off": 0}}, (), "the checkpoint may be damaged"),
        ({"sigmas": (1.0, 0.001)}, (), "try other sigmas"),
    ],
)
def test_what_was_asked_for_is_named_before_the_checkpoint(
    demo: ModelConfig, asked: dict[str, Any], merged: Sequence[tuple[str, float]], advice: str
) -> None:
    loras = asked.pop("loras", {})
    choices = tuple(LoraChoice(name=name, strength=strength) for name, strength in loras.items())
    request = Generate(request_id="1", prompt="x", loras=choices, **{"guidance": 0.0} | asked)
    checked = check(request, demo, Limits(), drawn_seed=0, loras=dict.fromkeys(loras, 1.0))
    error = no_picture(7, checked, merged)
    assert error.code == "image_not_finite"
    assert error.message == f"the image with seed 7 came out as no numbers: {advice}"
