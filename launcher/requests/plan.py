"""What a request becomes: checked, with its defaults filled in, then one job for each image. Pure.

Everything that can be refused is refused here, before any rank hears of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from engine.config.chat_template import MAX_PROMPT_TOKENS, PREFIX_TOKENS
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.planning.step_memory import DecodeMemory, batch_bytes, decode_bytes, encode_bytes, packed_bytes
from engine.step import Job
from launcher.messages.client_messages import Generate, LoraChoice
from launcher.messages.limits import Limits
from launcher.requests.tokenizer import Prompt

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

    `negative_prompt` is None when it would not be used, so that it is never encoded. `loras`: names and strengths.
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


@dataclass(frozen=True)
class Plan:
    """The jobs of a request, one for each image, and the tokens of each segment that one of them adds to a tick."""

    jobs: tuple[Job, ...]
    segments: tuple[int, ...]
    warnings: tuple[str, ...]


def make_plan(
    checked: CheckedRequest,
    model: ModelConfig,
    encode: Callable[[str], Prompt],
    job_ids: Iterator[int],
    lora_ids: Mapping[str, int],
) -> Plan:
    """Tokenise the prompts and make the jobs. Warns of prompts that were cut, and of one that the model cannot draw.

    lora_ids: of the adapters that are loaded, by name. One of no strength changes nothing, so it is left out.
    """
    texts = {"prompt": encode(checked.prompt)}
    if checked.negative_prompt is not None:
        texts["negative_prompt"] = encode(checked.negative_prompt)
    negative = texts.get("negative_prompt")
    jobs = tuple(
        Job(
            job_id=next(job_ids),
            prompt_ids=texts["prompt"].ids,
            negative_ids=None if negative is None else negative.ids,
            width=checked.width,
            height=checked.height,
            steps=checked.steps,
            guidance=checked.guidance,
            mu=checked.mu,
            seed=checked.seed + index,
            preview_every=checked.preview_every or 0,
            loras=tuple((lora_ids[name], strength) for name, strength in checked.loras if strength),
        )
        for index in range(checked.num_images)
    )
    image_tokens = model.image_tokens(checked.width, checked.height)
    segments = tuple(len(text.ids) - PREFIX_TOKENS + image_tokens for text in texts.values())
    cut = tuple(f"{name} was cut to {MAX_PROMPT_TOKENS} tokens" for name, text in texts.items() if text.cut)
    outside = model.prompt_domain.warning(checked.prompt) if model.prompt_domain else None
    return Plan(jobs, segments, checked.warnings + cut + ((outside,) if outside else ()))


def check_memory(
    plan: Plan,
    checked: CheckedRequest,
    model: ModelConfig,
    engine: EngineConfig,
    *,
    bytes_per_element: int,
    decode_memory: DecodeMemory,
    free: Sequence[int],
) -> None:
    """Raise `ArgumentError` if an image of the request, alone, needs more than the `free` bytes of some rank."""
    size = checked.width, checked.height
    needed = _needed(plan.segments, size, model, engine, bytes_per_element, decode_memory)
    for rank, (available, wanted) in enumerate(zip(free, needed, strict=True)):
        if wanted > available:
            raise ArgumentError(
                f"width × height {checked.width} × {checked.height} needs about {wanted / 1e9:.1f} GB on rank {rank}, "
                f"which has {available / 1e9:.1f} GB free",
                parameter="width",
            )


def default_needs(
    model: ModelConfig, engine: EngineConfig, *, bytes_per_element: int, decode_memory: DecodeMemory
) -> list[int]:
    """Bytes that each rank needs for a picture of the default size."""
    size = model.default_width, model.default_height
    tokens = model.image_tokens(*size) + MAX_PROMPT_TOKENS
    return _needed((tokens,), size, model, engine, bytes_per_element, decode_memory)


def _needed(
    segments: Sequence[int],
    size: tuple[int, int],
    model: ModelConfig,
    engine: EngineConfig,
    bytes_per_element: int,
    decode_memory: DecodeMemory,
) -> list[int]:
    """Bytes by rank. Rank 0 may decode images while the next step runs, the others help it between two."""
    stepping = max(
        batch_bytes(model, segments, engine.degrees, bytes_per_element),
        encode_bytes(model, engine.tp, bytes_per_element),
    )
    decoding = decode_bytes(model, *size, decode_memory.bytes_per_element, decode_memory.limit)
    elsewhere = max(stepping, decoding) if engine.decodes_together else stepping
    return [stepping + decoding] + [elsewhere] * (engine.ranks - 1)


def token_budget(
    model: ModelConfig,
    engine: EngineConfig,
    most: int,
    *,
    bytes_per_element: int,
    decode_memory: DecodeMemory,
    free: Sequence[int],
) -> int:
    """The tokens of a tick, at most `most`, for which every rank has memory beside a picture of the default size."""
    size = model.default_width, model.default_height
    decoding = decode_bytes(model, *size, decode_memory.bytes_per_element, decode_memory.limit)
    many = 100_000  # bytes grow with tokens as straight as it goes
    for_many = packed_bytes(model, many, engine.degrees, bytes_per_element)
    return max(1, min(most, (min(free) - decoding) * many // for_many))


def check_strength(name: str, strength: float) -> float:
    """Raise `ArgumentError` about the parameter `name` for a LoRA's strength that is not allowed."""
    return float(_between(name, strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH))


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
