"""Checks a request against the limits, and fills in the checkpoint's defaults. Pure.

Everything that can be refused is refused before any rank hears of it: here, and in `rank_memory.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.lora.schedule import LoraSchedule
from engine.pictures.strength import MOST_SCHEDULE_STEPS, steps_of
from engine.sigmas import MOST_MU
from engine.step_cache.settings import StepCache
from engine.step_cache.step_plan import WHOLE
from launcher.messages.client_messages import MODERATIONS, Generate
from launcher.messages.limits import Limits
from launcher.messages.message_parts import LoraChoice, Outpaint
from launcher.messages.parameter_names import RANDOM_SEED, describe_seed, usable_seed
from launcher.pictures.prepared import PreparedPicture
from launcher.pictures.wanted import check_picture
from launcher.requests.schedule.noise_levels import LoraSchedules, decide_schedule
from launcher.requests.schedule.saved_steps import check_cache, check_window, warn_of_nothing_saved

OUTPUT_FORMATS = ("png", "jpeg", "webp")
LONGEST_USER = 256  # characters
MAX_MU = MOST_MU
MAX_PRIORITY = 100
MAX_TIMEOUT_S = 86_400  # seconds
BEST_COMPRESSION = 100  # the quality of a JPEG or WebP file, by OpenAI's name for it
MAX_LORA_STRENGTH = 10.0  # positive or negative; files are made for 1, and far from it there is nothing to see
_PICTURE_STRENGTH = 0.6  # as in diffusers; where a mask says what changes, all of that does
_SHOWN_LORAS = 12  # names in an error
_NOTHING_KNOWN = LoraSchedules()

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class CheckedRequest:
    """A request within all limits, with an attribute for each of its parameters, however many they are.

    Sizes are rounded up, and image i has seed `seed + i`. negative_prompt: None when it would not be used, so that it
    is never encoded. loras: names and strengths.

    steps: those that are run; asked_steps: as they were asked for, skipped_steps: of the schedule before those run.
    strength: None for images that begin from no picture. picture: what they begin from, where its files are known.
    sigmas, cache, guidance_window, guidance_outside: as of a `Job`. of_loras: what LoRAs have decided of its steps.
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
    explain: bool = False
    output_compression: int | None = None
    asked_steps: int = 0
    skipped_steps: int = 0
    strength: float | None = None
    strength_steps: str = "partial"
    masked: bool = False
    outpaint: Outpaint | None = None
    mask_crop: int | None = None
    mask_feather: int | None = None
    picture: PreparedPicture | None = None
    moderation: str = "auto"
    user: str | None = None
    cache: StepCache | None = None
    guidance_window: tuple[float, float] = WHOLE
    guidance_outside: str = "off"
    sigmas: tuple[float, ...] | None = None
    of_loras: LoraSchedule | None = None

    @property
    def answer_size(self) -> tuple[int, int]:
        """Width and height of finished images; width and height are what is drawn."""
        return (self.width, self.height) if self.picture is None else self.picture.answer_size

    @property
    def pixels(self) -> int:
        """Of an image, or of the picture that it is pasted into, which may be far larger."""
        return max(self.width * self.height, math.prod(self.answer_size))


def check(
    request: Generate,
    model: ModelConfig,
    limits: Limits,
    *,
    drawn_seed: int,
    loras: Mapping[str, float] | None = None,
    made_for: LoraSchedules = _NOTHING_KNOWN,
    picture: PreparedPicture | None = None,
) -> CheckedRequest:
    """Apply the checkpoint's defaults and the limits. `drawn_seed` is the seed of a request that names none.

    loras: what is loaded, by name, with the strength of requests that name none; None where that is not known.
    made_for: what LoRAs say of the steps that they need. Raises `ArgumentError` naming the parameter, what is allowed
    and the value.
    """
    _check_text("prompt", request.prompt, limits)
    num_images = _between("num_images", request.num_images, 1, limits.max_images)
    chosen = _check_loras(request.loras, limits, loras)
    schedule = decide_schedule(request, made_for.of(chosen), model, limits)
    steps = _between("steps", schedule.steps, 1, limits.max_steps)
    guidance = _between("guidance", schedule.guidance, 0, limits.max_guidance)
    warnings = [*schedule.warnings]
    built_in = model.is_distilled and model.default_guidance == 0  # more of it spoils pictures
    if request.negative_prompt is not None:
        _check_text("negative_prompt", request.negative_prompt, limits)
        if request.negative_prompt and guidance == 0:
            needs = "guidance, for which Turbo is not made: take Raw" if built_in else "a guidance above 0"
            warnings.append(f"the negative prompt is not used: it needs {needs}")
    run, skipped, strength = steps, 0, None
    check_picture(request, limits)
    if request.pictures:
        partial = request.outpaint is None and "mask" not in request.pictures
        strength = (_PICTURE_STRENGTH if partial else 1.0) if request.strength is None else request.strength
        _between("strength", strength, 0, 1)
        run, skipped = steps_of(steps, strength, request.strength_steps)
        if run + skipped > MOST_SCHEDULE_STEPS:
            allowed = f"0, or at least {steps / MOST_SCHEDULE_STEPS:g} with {steps} steps"
            raise ArgumentError.of("strength", allowed, strength)
        if partial and strength < 1 and skipped == 0:
            least = 1 - 1 / steps if request.strength_steps == "partial" else steps / (steps + 1)
            told = f"with {steps} steps a strength above {math.floor(least * 1000) / 1000:g} is as good as 1"
            warnings.append(f"nothing of the picture is kept: {told}")
    cache, window = check_cache(request.cache, model), check_window(request)
    saved = warn_of_nothing_saved(
        cache, window, request.guidance_outside, guided=guidance > 0, steps=run, skipped=skipped
    )
    warnings.extend(saved)
    width, height = _size(request.width, request.height, model, limits)
    if picture is not None:
        width, height = picture.width, picture.height
        warnings.extend(picture.warnings)
    asked = (request.width or width, request.height or height)
    if picture is None and asked != (width, height):
        rounded = f"{width} × {height}, multiples of {model.size_multiple}"
        warnings.append(f"the size {asked[0]} × {asked[1]} was rounded up to {rounded}")
    for outside in (
        model.size_domain.warning(width, height) if model.size_domain else None,
        model.prompt_domain.warning(request.prompt) if model.prompt_domain else None,
        model.prompt_domain.negative_warning(request.negative_prompt or "")
        if model.prompt_domain and guidance > 0
        else None,
    ):
        if outside is not None:
            warnings.append(outside)
    if guidance > 0 and built_in:
        told = f"guidance {guidance:g} may spoil the picture"
        warnings.append(f"{told}: Turbo has it built in; leave it out, or take Raw")
    asked_seed = drawn_seed if request.seed in (None, RANDOM_SEED) else request.seed
    assert asked_seed is not None
    seed = usable_seed(asked_seed, limits, num_images)
    if seed != asked_seed:
        warnings.append(describe_seed(asked_seed, seed, limits))
    if request.timeout_s is not None and not 0 < request.timeout_s <= MAX_TIMEOUT_S:
        raise ArgumentError.of("timeout_s", f"above 0 and at most {MAX_TIMEOUT_S}", request.timeout_s)
    if request.output_format not in OUTPUT_FORMATS:
        raise ArgumentError.of("output_format", f"one of {', '.join(OUTPUT_FORMATS)}", request.output_format)
    if request.moderation not in MODERATIONS:
        raise ArgumentError.of("moderation", f"one of {', '.join(MODERATIONS)}", request.moderation)
    if request.user is not None and len(request.user) > LONGEST_USER:
        told = (
            f"user must be at most {LONGEST_USER} characters, got {len(request.user)}"  # and not who, which is logged
        )
        raise ArgumentError(told, parameter="user")
    compression = request.output_compression
    if compression is not None:
        _between("output_compression", compression, 0, BEST_COMPRESSION)
        if request.output_format == "png" and compression != BEST_COMPRESSION:
            warnings.append("output_compression was ignored: PNG files lose nothing; take jpeg or webp for small ones")
    return CheckedRequest(
        prompt=request.prompt,
        negative_prompt=(request.negative_prompt or "") if guidance > 0 else None,
        seed=seed,
        steps=run,
        guidance=float(guidance),
        mu=None if schedule.mu is None else float(_between("mu", schedule.mu, -MAX_MU, MAX_MU)),
        width=width,
        height=height,
        num_images=num_images,
        priority=_between("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY),
        timeout_s=request.timeout_s,
        output_format=request.output_format,
        metadata=request.metadata,
        preview_every=None
        if request.preview_every is None
        else schedule.preview_every(_between("preview_every", request.preview_every, 1, limits.max_steps), run),
        loras=chosen,
        warnings=tuple(warnings),
        explain=request.explain,
        output_compression=compression,
        asked_steps=steps,
        skipped_steps=skipped,
        strength=strength,
        strength_steps=request.strength_steps,
        masked="mask" in request.pictures,
        outpaint=request.outpaint,
        mask_crop=request.mask_crop,
        mask_feather=request.mask_feather,
        picture=picture,
        moderation=request.moderation,
        user=request.user,
        cache=cache,
        guidance_window=window if guidance > 0 else WHOLE,
        guidance_outside=request.guidance_outside,
        sigmas=schedule.sigmas,
        of_loras=schedule.of_loras,
    )


def check_strength(name: str, strength: float, parameter: str) -> float:
    """Check a LoRA's strength. Raises `ArgumentError`, which calls it `name`, about the parameter it is part of."""
    if not abs(strength) <= MAX_LORA_STRENGTH:
        allowed = f"between {-MAX_LORA_STRENGTH:g} and {MAX_LORA_STRENGTH:g}"
        raise ArgumentError(f"{name} must be {allowed}, got {strength}", parameter=parameter)
    return float(strength)


def parse_size(parameter: str, text: str, model: ModelConfig, limits: Limits) -> tuple[int, int]:
    """Read WIDTHxHEIGHT, in pixels, check it, and round it as that of an image. Raises `ArgumentError`."""
    width, _, height = text.partition("x")
    if not (text.isascii() and width.isdecimal() and height.isdecimal()):
        raise ArgumentError.of(parameter, "WIDTHxHEIGHT, as 512x768", text)
    try:
        return _size(int(width), int(height), model, limits)
    except ArgumentError as error:
        raise ArgumentError(f"{parameter} {text}: {error.message}", parameter=parameter) from None


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
            more = f" and {len(loaded) - _SHOWN_LORAS} more" if len(loaded) > _SHOWN_LORAS else ""
            listed = ", ".join([*loaded][:_SHOWN_LORAS]) + more or "none; --lora, or loras of launch, loads some"
            raise ArgumentError.of("loras", f"among the loaded ones ({listed})", choice.name)
        strength = choice.strength
        if strength is None:
            strength = 1.0 if loaded is None else loaded[choice.name]
        checked[choice.name] = check_strength(f"loras[{index}].strength", strength, "loras")
    return tuple(checked.items())


def _size(width: int | None, height: int | None, model: ModelConfig, limits: Limits) -> tuple[int, int]:
    """Width and height in pixels, rounded up."""

    def rounded(name: str, side: int) -> int:
        _between(name, side, limits.min_side, limits.max_side)
        return math.ceil(side / model.size_multiple) * model.size_multiple

    width = rounded("width", model.default_width if width is None else width)
    height = rounded("height", model.default_height if height is None else height)
    if width * height > limits.max_pixels:
        allowed = f"at most {limits.max_pixels} pixels"
        raise ArgumentError(f"width × height must be {allowed}, got {width} × {height}", parameter="width")
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
        raise ArgumentError.of(name, f"at most {limits.max_prompt_bytes} bytes of UTF-8", size)
