"""What the judge says of a picture."""

from __future__ import annotations

from PIL import Image

from demo.captions import Kind, Prompt, parse
from demo.judge import look, verdict
from demo.pictures import PALETTE

RED, BLUE, GREEN = PALETTE["red"], PALETTE["blue"], PALETTE["green"]
RED_CIRCLE = Prompt("blue", Kind("red", "circle"))


def wrong(prompt: Prompt, image: Image.Image) -> set[str]:
    """The attributes that are not as the prompt says."""
    return {name for name, right in verdict(prompt, look(image)).items() if not right}


def shape_seen(image: Image.Image) -> str:
    """The shape of a picture's only object."""
    (item,) = look(image).objects
    return item.shape


def asked(text: str) -> Prompt:
    prompt = parse(text)
    assert prompt is not None
    return prompt
