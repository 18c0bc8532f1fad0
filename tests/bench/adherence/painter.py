"""An engine's stand-in, which draws every prompt as the renderer does."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Unpack

from bench.adherence.drawing import Engine, Way
from demo.captions import COLOURS, Prompt, parse
from demo.pictures import draw
from launcher import Result
from launcher.client.async_client import Parameters

ENGINE = Engine(model="demo", tp=1, device="auto", dtype="auto", quantization="auto", attention="auto")
WAY = Way("as given", ENGINE, steps=None, guidance=None)


class Painter:
    """Draws every prompt as the renderer does, after `change` has misread it."""

    def __init__(self, change: Callable[[Prompt, Parameters], Prompt] = lambda prompt, _: prompt) -> None:
        self._change = change
        self.asked: list[Parameters] = []

    def generate(self, prompt: str, **parameters: Unpack[Parameters]) -> Result:
        self.asked.append(parameters)
        asked = parse(prompt)
        assert asked is not None
        width, height, seed = parameters["width"], parameters["height"], parameters["seed"]
        assert width is not None
        assert height is not None
        assert seed is not None
        file = io.BytesIO()
        draw(self._change(asked, parameters), width, height, random.Random(seed)).save(file, "png")
        return Result("id", 0, [file.getvalue()], [seed], width, height, "png", {}, ())


def with_wrong_background(prompt: Prompt, _: Parameters) -> Prompt:
    used = {prompt.background, *(kind.colour for kind in prompt.objects)}
    return replace(prompt, background=next(colour for colour in COLOURS if colour not in used))


def with_every_fourth_wrong(prompt: Prompt, parameters: Parameters) -> Prompt:
    seed = parameters["seed"]
    assert seed is not None
    return prompt if seed % 4 else with_wrong_background(prompt, parameters)
