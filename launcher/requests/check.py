"""Whether a request is allowed, and with which values: the limits, and the checkpoint's defaults filled in. Pure.

Everything that can be refused is refused before any rank hears of it: here, and in `rank_memory.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from launcher.messages.client_messages import Generate, LoraChoice
from launcher.messages.limits import Limits

OUTPUT_FORMATS = ("png", "jpeg", "webp")
MAX_MU = 10.0  # the schedule computes exp(mu); the checkpoints' own rule stays below 2
MAX_PRIORITY = 100
MAX_TIMEOUT_S = 86_400
MAX_LORA_STRENGTH = 10.0  # either way; files are made for 1, and far from it there is nothing to see
_SHOWN_LORAS = 12  # names in an error

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class CheckedRequest:
    """A request within all limits: sizes are rounded up, and image i has seed `seed + i`.

    `negative_prompt` is None when it would not be used, so that it is never encoded. `loras`: names and strengths. It
    has as many attributes as a request has parameters.
    """

    prompt: str
    negative_prompt: str | None
    seed: int
    steps: int
    guidance: float
    mu: float | None
    width: int
    height: int
    num_images: int
    priority: int
    timeout_s: float | None
    output_format: str
    metadata: bool
    preview_every: int | None
    loras: tuple[tuple[str, float], ...]
    warnings: tuple[str, ...]


def check(
    request: Generate,
    model: ModelConfig,
    limits: Limits,
    *,
    drawn_seed: int,
    loras: Mapping[str, float] | None = None,
) -> CheckedRequest:
    """Apply the checkpoint's defaults and the limits. `drawn_seed` is the seed of a request that names none.

    loras: what is loaded, by name, with the strength of requests that name none; None where that is not known.

    Raises `ArgumentError` naming the parameter, what is allowed and the value.
    """
    warnings: list[str] = []
    _check_text("prompt", request.prompt, limits)
    num_images = _between("num_images", request.num_images, 1, limits.max_images)
    steps = _between("steps", model.default_steps if request.steps is None else request.steps, 1, limits.max_steps)
    guidance = _between(
        "guidance", model.default_guidance if request.guidance is None else request.guidance, 0, limits.max_guidance
    )
    if request.negative_prompt is not None:
        _check_text("negative_prompt", request.negative_prompt, limits)
        if request.negative_prompt and guidance == 0:
            warnings.append("the negative prompt is not used: it needs a guidance above 0")
    width, height = _size(request, model, limits)
    asked = (request.width or width, request.height or height)
    if asked != (width, height):
        warnings.append(
            f"the size {asked[0]} × {asked[1]} was rounded up to {width} × {height}, multiples of {model.size_multiple}"
        )
    seed = drawn_seed if request.seed is None else request.seed
    if not 0 <= seed <= limits.max_seed - (num_images - 1):
        images = f" for {num_images} images" if num_images > 1 else ""
        raise ArgumentError.of("seed", f"between 0 and {limits.max_seed - (num_images - 1)}{images}", seed)
    if request.timeout_s is not None and not 0 < request.timeout_s <= MAX_TIMEOUT_S:
        raise ArgumentError.of("timeout_s", f"above 0 and at most {MAX_TIMEOUT_S}", request.timeout_s)
    if request.output_format not in OUTPUT_FORMATS:
        raise ArgumentError.of("output_format", f"one of {', '.join(OUTPUT_FORMATS)}", request.output_format)
    return CheckedRequest(
        prompt=request.prompt,
        negative_prompt=(request.negative_prompt or "") if guidance > 0 else None,
        seed=seed,
        steps=steps,
        guidance=float(guidance),
        mu=None if request.mu is None else float(_between("mu", request.mu, -MAX_MU, MAX_MU)),
        width=width,
        height=height,
        num_images=num_images,
        priority=_between("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY),
        timeout_s=request.timeout_s,
        output_format=request.output_format,
        metadata=request.metadata,
        preview_every=None
        if request.preview_every is None
        else _between("preview_every", request.preview_every, 1, limits.max_steps),
        loras=_check_loras(request.loras, limits, loras),
        warnings=tuple(warnings),
    )


def check_strength(name: str, strength: float) -> float:
    """Raise `ArgumentError` about the parameter `name` for a LoRA's strength that is not allowed."""
    return float(_between(name, strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH))


def parse_size(parameter: str, text: str, model: ModelConfig, limits: Limits) -> tuple[int, int]:
    """WIDTHxHEIGHT as an image of that size would have it: within the limits, and rounded. Raises `ArgumentError`."""
    width, _, height = text.partition("x")
    if not (text.isascii() and width.isdecimal() and height.isdecimal()):
        raise ArgumentError.of(parameter, "WIDTHxHEIGHT, as 512x768", text)
    request = Generate(request_id="size", prompt="", width=int(width), height=int(height))
    try:
        checked = check(request, model, limits, drawn_seed=0)
    except ArgumentError as error:
        raise ArgumentError(f"{parameter} {text}: {error.message}", parameter=parameter) from None
    return checked.width, checked.height


def _check_loras(
    choices: Sequence[LoraChoice], limits: Limits, loaded: Mapping[str, float] | None
) -> tuple[tuple[str, float], ...]:
    if len(choices) > limits.max_request_loras:
        raise ArgumentError.of("loras", f"at most {limits.max_request_loras}", len(choices))
    checked: dict[str, float] = {}
    for index, choice in enumerate(choices):
        if choice.name in checked:
            raise ArgumentError.of("loras", "different ones", choice.name)
        if loaded is not None and choice.name not in loaded:
            raise ArgumentError.of("loras", f"among those that are loaded ({_listed(loaded)})", choice.name)
        strength = choice.strength
        if strength is None:
            strength = 1.0 if loaded is None else loaded[choice.name]
        try:
            checked[choice.name] = check_strength(f"loras[{index}].strength", strength)
        except ArgumentError as error:
            raise ArgumentError(error.message, parameter="loras") from None
    return tuple(checked.items())


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = len(shown) - _SHOWN_LORAS
    return ", ".join(shown[:_SHOWN_LORAS]) + (f" and {more} more" if more > 0 else "") if shown else "none"


def _size(request: Generate, model: ModelConfig, limits: Limits) -> tuple[int, int]:
    sides = []
    for name, side, default in (
        ("width", request.width, model.default_width),
        ("height", request.height, model.default_height),
    ):
        value = _between(name, default if side is None else side, limits.min_side, limits.max_side)
        sides.append(math.ceil(value / model.size_multiple) * model.size_multiple)
    width, height = sides
    if width * height > limits.max_pixels:
        raise ArgumentError(
            f"width × height must be at most {limits.max_pixels} pixels, got {width} × {height}", parameter="width"
        )
    return width, height


def _between(name: str, value: Number, low: float, high: float) -> Number:
    if not low <= value <= high:  # NaN is between nothing
        shown_low, shown_high = (int(limit) if limit == int(limit) else limit for limit in (low, high))
        raise ArgumentError.of(name, f"between {shown_low} and {shown_high}", value)
    return value


def _check_text(name: str, text: str, limits: Limits) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ArgumentError(f"{name} must be valid Unicode text, got lone surrogates", parameter=name) from None
    if size > limits.max_prompt_bytes:
        raise ArgumentError(
            f"{name} must be at most {limits.max_prompt_bytes} bytes of UTF-8, got {size}", parameter=name
        )
