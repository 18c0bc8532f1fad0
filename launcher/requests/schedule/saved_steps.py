"""Checks which steps of its images a request lets be saved, and in which they are guided. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from engine.config.degrees import Degrees
from engine.config.model_config import MOST_STEPS, ModelConfig
from engine.errors import ArgumentError
from engine.pictures.strength import MOST_SCHEDULE_STEPS
from engine.planning.work_division import shares_all_tokens
from engine.scheduling.cost import CostModel
from engine.scheduling.job_work import work_of
from engine.step_cache.settings import METHODS, PRESETS, StepCache
from engine.step_cache.step_plan import WHOLE, JobSteps, StepKind, plan_of
from launcher.messages.client_messages import Generate
from launcher.messages.message_parts import CacheChoice

OFF = "off"
CACHES = (OFF, *PRESETS)
GUIDANCE_OUTSIDE = (OFF, "last")
OF_BLOCKS = ("first_blocks", "last_blocks", "threshold")
# As the documentation of cache-dit sets it up, forecasts among it.
CACHE_DEFAULTS = StepCache("blocks", warmup_steps=8, max_consecutive=2, order=1, max_cached=200)
_UNIT = 1000  # tokens of a half, whose work is counted in whole ones
CACHE_RANGES = {
    "warmup_steps": (0, MOST_SCHEDULE_STEPS),
    "max_consecutive": (1, MOST_SCHEDULE_STEPS),
    "order": (0, 1),
    "max_cached": (1, MOST_SCHEDULE_STEPS),
    "first_blocks": (1, MOST_SCHEDULE_STEPS),
    "last_blocks": (0, MOST_SCHEDULE_STEPS),
    "threshold": (0, 100),
}


def check_cache(asked: str | CacheChoice, model: ModelConfig) -> StepCache | None:
    """Give the settings that a request asks for, None for `off`. Raises `ArgumentError` about `cache`."""
    cache = _settings(asked)
    if cache is not None and cache.method == "blocks":
        blocks, always = model.transformer.num_layers, cache.first_blocks + cache.last_blocks
        if always >= blocks:
            told = f"fewer than the {blocks} blocks of the model in all, got {always}"
            raise ArgumentError(f"cache.first_blocks and cache.last_blocks must be {told}", parameter="cache")
    return cache


def expected_steps(request: Generate, steps: int, *, guided: bool, blocks: int) -> float:
    """Estimate the work of an image of so many steps, in steps of a half, of which a guided image has two: before it is
    checked, and before the engine that makes it has learned what it saves. blocks: of the model."""
    halves = 1 + guided
    window = request.guidance_from, request.guidance_until
    with suppress(ArgumentError):
        cache = _settings(request.cache)
        if (cache is not None or window != WHOLE) and 1 <= steps <= MOST_STEPS:
            job = JobSteps(halves, steps, 0, cache, window)
            work = work_of(job, (_UNIT,) * halves, CostModel(blocks))
            return steps * halves if work is None else work.expected(steps, 0).tokens / _UNIT
    return steps * halves


def _settings(asked: str | CacheChoice) -> StepCache | None:
    if not isinstance(asked, str):
        return _check_fields(asked)
    if asked not in CACHES:
        raise ArgumentError.of("cache", f"one of {', '.join(CACHES)}, or its fields", asked)
    return PRESETS.get(asked)


def _check_fields(asked: CacheChoice) -> StepCache:
    given = {name: getattr(asked, name) for name in asked.__struct_fields__ if getattr(asked, name) is not None}
    if asked.method not in METHODS:
        raise _wrong("method", f"one of {', '.join(METHODS)}", asked.method)
    for name in OF_BLOCKS if asked.method != "blocks" else ():
        if name in given:
            raise ArgumentError(f"cache.{name} is of method blocks, not of {asked.method}", parameter="cache")
    for name, (low, high) in CACHE_RANGES.items():
        _between(given, name, low, high)
    return StepCache(**asdict(CACHE_DEFAULTS) | given)


def check_shared(cache: StepCache | None, model: ModelConfig, degrees: Degrees) -> None:
    """Raise `ArgumentError` where two groups of ranks, which compute a half each, would have to share the tokens of
    both for this cache, and cannot."""
    if degrees.cfg == 1 or not shares_all_tokens(cache):
        return
    for name, heads in model.transformer.undivided_heads(degrees.ranks):
        told = f"{name} is {heads}, which the {degrees.ranks} ranks of this server do not divide"
        raise ArgumentError(f"cache cannot be of method blocks here: {told}; take velocity", parameter="cache")


def check_window(request: Generate) -> tuple[float, float]:
    """Give the part of the schedule in which a request is guided. Raises `ArgumentError`."""
    window = request.guidance_from, request.guidance_until
    for name, fraction in zip(("guidance_from", "guidance_until"), window, strict=True):
        if not 0 <= fraction <= 1:  # NaN is neither
            raise ArgumentError.of(name, "between 0 and 1, a part of the schedule", fraction)
    if window[0] >= window[1]:
        if window[1] == WHOLE[1]:  # which nobody has to have said
            raise ArgumentError.of("guidance_from", f"below guidance_until, which is {window[1]:g}", window[0])
        allowed = f"above guidance_from, which is {window[0]:g} (without any guidance: guidance 0)"
        raise ArgumentError.of("guidance_until", allowed, window[1])
    if request.guidance_outside not in GUIDANCE_OUTSIDE:
        raise ArgumentError.of("guidance_outside", f"one of {', '.join(GUIDANCE_OUTSIDE)}", request.guidance_outside)
    return float(window[0]), float(window[1])


def warn_of_nothing_saved(
    cache: StepCache | None, window: tuple[float, float], outside: str, *, guided: bool, steps: int, skipped: int
) -> Iterator[str]:
    """Say what has no effect on images of so many steps, after those of the schedule that are skipped."""
    if window != WHOLE and not guided:
        yield "guidance_from and guidance_until were ignored: guidance is 0, so that there is none to leave out"
    if steps == 0:
        return
    plan = plan_of(JobSteps(1 + guided, steps, skipped, cache, window)) or ()
    if guided and plan and all(kind is StepKind.LEFT_OUT for kind in plan[1]):
        first, last = skipped / (skipped + steps), 1 - 1 / (skipped + steps)
        begin = f"the {steps} steps begin at {first:.3g} to {last:.3g} of the schedule"
        yield f"no step is guided: {begin}, none of them from {window[0]:g} to {window[1]:g}"
    elif guided and outside != OFF and not (plan and plan[1][-1] is StepKind.LEFT_OUT):
        yield f"guidance_outside {outside} was ignored: no step comes after the last guided one"
    if cache is None:
        return
    if not any(kind in (StepKind.MAY_BE_CACHED, StepKind.FORECAST) for half in plan for kind in half):
        yield f"cache saves nothing: {_why(cache.warmup_steps, steps)}"


def _why(warmup_steps: int, steps: int) -> str:
    if steps == 1:
        return "the only step is always computed"
    if warmup_steps >= steps:
        return f"all {steps} steps are warm-up"
    if warmup_steps < 2:
        return f"of {steps} steps the first and the last one are always computed"
    return f"{warmup_steps} of {steps} steps are warm-up, and the last one is always computed"


def _between(given: dict[str, Any], name: str, low: float, high: float) -> None:
    if name in given and not low <= given[name] <= high:  # NaN is between nothing
        raise _wrong(name, f"between {low:g} and {high:g}", given[name])


def _wrong(name: str, allowed: str, value: object) -> ArgumentError:
    return ArgumentError(ArgumentError.of(f"cache.{name}", allowed, value).message, parameter="cache")
