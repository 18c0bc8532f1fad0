"""An engine's stand-in that says what it computed."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any, Unpack

from bench.adherence.step_caching.replay import Schedule
from demo.captions import Prompt
from engine.step_cache.settings import PRESETS, StepCache
from engine.step_cache.step_plan import StepKind, plan_of
from launcher import Result
from launcher.client.parameters import Parameters
from launcher.messages.message_parts import Computed
from tests.bench.adherence.painter import Painter, with_wrong_background

BLOCKS, STEPS = 6, 40


class SavingPainter(Painter):
    """Draws as `Painter` does. With a cache every pixel is off by 1, and with `fast` every tenth picture is wrong; no
    step that the first blocks decide on is saved."""

    def __init__(self, guided: bool = True) -> None:
        def change(prompt: Prompt, given: Parameters) -> Prompt:
            seed = given["seed"]
            assert seed is not None
            return prompt if given.get("cache") != "fast" or seed % 10 else with_wrong_background(prompt, given)

        super().__init__(change)
        self._guided = guided

    def generate(self, prompt: str, **parameters: Unpack[Parameters]) -> Result:
        given: dict[str, Any] = {**parameters}
        cache = given.get("cache")
        settings = StepCache(**cache) if isinstance(cache, dict) else PRESETS.get(cache)
        window = (given.get("guidance_from", 0.0), given.get("guidance_until", 1.0))
        kinds = plan_of(Schedule(given.get("steps") or STEPS, self._guided, BLOCKS, settings, window))
        result = super().generate(prompt, **parameters)
        if kinds is None:
            return replace(result, computed=[None])
        ran = [[0 if kind in (StepKind.FORECAST, StepKind.LEFT_OUT) else BLOCKS for kind in half] for half in kinds]
        computed = Computed(steps=tuple(zip(*ran, strict=True)), blocks=BLOCKS)
        file = io.BytesIO()
        result.image.convert("RGB").point(lambda value: value ^ 1).save(file, "png")
        return replace(result, files=[file.getvalue()], computed=[computed])
