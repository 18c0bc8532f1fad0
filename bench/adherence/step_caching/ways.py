"""The ways to save steps that the table compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.adherence.step_caching.reckoned import BLOCKS, RAW_STEPS, TURBO_STEPS
from bench.adherence.step_caching.replay import Schedule
from engine.config.demo_checkpoints import DEMO_CHECKPOINTS
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.step_cache.settings import PRESETS, StepCache
from engine.step_cache.step_plan import WHOLE
from launcher.requests.schedule.described import saved_settings


@dataclass(frozen=True)
class Way:
    """A way to draw. steps: None for the model's own. window, outside: of guidance, see `Generate`."""

    name: str
    cache: StepCache | None = None
    steps: int | None = None
    window: tuple[float, float] = WHOLE
    outside: str = "off"

    @property
    def parameters(self) -> dict[str, Any]:
        """Of `Client.generate`; nothing that is as it is without."""
        steps: dict[str, Any] = {} if self.steps is None else {"steps": self.steps}
        return steps | saved_settings(self.cache, self.window, self.outside)


@dataclass(frozen=True)
class Model:
    """What the table needs to know of a model: its default steps, whether they are guided, and its blocks."""

    steps: int
    guided: bool
    blocks: int
    distilled: bool

    @classmethod
    def of(cls, model: str) -> Model:
        """Look at a model: a demo's name, or a folder in the diffusers layout. Raises `CheckpointError`."""
        config = ModelConfig.from_folder(DEMO_CHECKPOINTS.get(model, Path(model)))
        guided = config.default_guidance > 0
        return cls(config.default_steps, guided, config.transformer.num_layers, config.is_distilled)

    @property
    def ways(self) -> tuple[Way, ...]:
        """Those to compare, the first without anything saved."""
        return TURBO_WAYS if self.distilled else RAW_WAYS

    def schedule(self, way: Way) -> Schedule:
        """Plan the steps of a way."""
        return Schedule(way.steps or self.steps, self.guided, self.blocks, way.cache, way.window)

    def real_schedule(self, way: Way) -> Schedule:
        """Plan the same at the size of Krea 2 and in its steps, or in the same part of them."""
        real = TURBO_STEPS if self.distilled else RAW_STEPS
        steps = round(real * (way.steps or self.steps) / self.steps)
        return replace(self.schedule(way), steps=steps, blocks=BLOCKS)


def _blocks(warmup_steps: int, max_consecutive: int, threshold: float, order: int = 0) -> StepCache:
    return StepCache("blocks", warmup_steps, max_consecutive, order, max_cached=200, threshold=threshold)


def _velocity(warmup_steps: int, max_consecutive: int, order: int = 1) -> StepCache:
    return StepCache("velocity", warmup_steps, max_consecutive, order, max_cached=200)


RAW_WAYS = (
    Way("nothing saved"),
    Way("quality", cache=PRESETS["quality"]),
    Way("fast", cache=PRESETS["fast"]),
    Way("quality, guided until 0.7", cache=PRESETS["quality"], window=(0.0, 0.7)),
    Way("fast, guided until 0.7", cache=PRESETS["fast"], window=(0.0, 0.7)),
    Way("guided until 0.7", window=(0.0, 0.7)),
    Way("guided until 0.5", window=(0.0, 0.5)),
    Way("guided until 0.7, then the last difference", window=(0.0, 0.7), outside="last"),
    Way("fast, but order 0", cache=replace(PRESETS["fast"], order=0)),
    # cache-dit's rule with one first block: its faster setting, with a forecast too, and what SGLang's figures are of
    Way("blocks: 0.12, warm-up 8, 2 in a row", cache=_blocks(8, 2, 0.12)),
    Way("blocks: 0.12, warm-up 8, 2 in a row, order 1", cache=_blocks(8, 2, 0.12, order=1)),
    Way("blocks: 0.24, warm-up 4, 3 in a row", cache=_blocks(4, 3, 0.24)),
    Way("24 steps", steps=24),
    Way("16 steps", steps=16),
)
TURBO_WAYS = (
    Way("nothing saved"),
    Way("fast", cache=PRESETS["fast"]),  # `quality` saves none of 8 steps
    Way("8 steps, forecast", cache=_velocity(3, 1)),
    Way("8 steps, forecast of order 0", cache=_velocity(3, 1, order=0)),
    Way("6 steps", steps=6),
    Way("6 steps, forecast", cache=_velocity(3, 1), steps=6),
    Way("6 steps, forecast of order 0", cache=_velocity(3, 1, order=0), steps=6),
    Way("4 steps", steps=4),
    Way("4 steps, forecast", cache=_velocity(2, 1), steps=4),
    Way("4 steps, forecast of order 0", cache=_velocity(2, 1, order=0), steps=4),
    Way("3 steps", steps=3),
    Way("3 steps, forecast of order 0", cache=_velocity(1, 1, order=0), steps=3),
    Way("2 steps", steps=2),  # both are always computed
)


def ways_named(ways: Sequence[Way], names: Sequence[str] | None) -> list[Way]:
    """Choose the first, with which all are compared, and those of these names; all where there are none. Raises
    `ArgumentError` for a name that no way has."""
    known = {way.name: way for way in ways}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ArgumentError.of("ways", f"of {'; '.join(known)}", unknown[0])
    return [way for way in ways if names is None or way is ways[0] or way.name in names]
