"""Reads the values of parameters as programs send them, whose forms have text for numbers: 8, 8.0 and "8". Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import ArgumentError, shortened

FIRST_SEED, LAST_SEED = -(2**63), 2**64 - 1  # that clients draw, signed or not
_WHOLE = re.compile(r"\s*([+-]?[0-9]{1,40})(?:\.0*)?\s*")
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?\s*")
_HUGE = 10**40  # as many digits as a text may have
_SIGMAS = "numbers in a list, as 1,0.75,0.5,0.25"
_MOST_SIGMAS = 10_000  # no schedule has more
SIDES = ("left", "top", "right", "bottom")  # of a picture
PICTURES = ("image", "mask")  # parameters that are pictures, in the order in which they are sent
_SHOWN = 40  # characters of a name that there is none of
_SWITCH = {"true": True, "false": False}


def whole(name: str, value: object) -> int:
    """Read a whole number. Raises `ArgumentError` about `name`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and (match := _WHOLE.fullmatch(value)):
        return int(match[1])
    raise ArgumentError.of(name, "a whole number", value)


def seed_of(name: str, value: object) -> int:
    """Read a seed, of 64 bits with or without a sign. Raises `ArgumentError` about `name`."""
    number = whole(name, value)
    if not FIRST_SEED <= number <= LAST_SEED:
        raise ArgumentError.of(name, f"between {FIRST_SEED} and {LAST_SEED}", number)
    return number


def number(name: str, value: object) -> float:
    """Read a number that a float can be. Raises `ArgumentError` about `name`."""
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < _HUGE):
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    raise ArgumentError.of(name, "a number", value)


def switch(name: str, value: object) -> bool:
    """Read true or false. Raises `ArgumentError` about `name`."""
    if isinstance(value, str):
        value = _SWITCH.get(value.strip().lower(), value)
    if isinstance(value, bool):
        return value
    raise ArgumentError.of(name, "true or false", value)


def outpaint(name: str, value: object) -> dict[str, int]:
    """Read how many pixels to add on which sides: `left=256,top=64`, or an object of them, in which null is none, as is
    an empty text of a form. Raises `ArgumentError` about `name`."""
    allowed = "pixels to add by side, as left=256,top=64"
    if isinstance(value, str):
        pairs = [side.partition("=") for side in value.split(",")[: len(SIDES) + 1]]
        sides: Mapping[Any, Any] = {side.strip(): pixels for side, _, pixels in pairs}
        if len(sides) < len(pairs) or any(side in SIDES and not pixels for side, pixels in sides.items()):
            raise ArgumentError.of(name, allowed, value)
    elif isinstance(value, Mapping):
        sides = {side: pixels for side, pixels in value.items() if pixels not in (None, "")}
    else:
        raise ArgumentError.of(name, allowed, value)
    for side in sides:
        if side not in SIDES:
            raise ArgumentError.of(name, f"{allowed}, of left, top, right and bottom", side)
    return {side: whole(f"{name}.{side}", pixels) for side, pixels in sides.items()}


def sigmas(name: str, value: object) -> tuple[float, ...]:
    """Read noise levels: a list of numbers, or a text of some with commas between them, in brackets or not. Raises
    `ArgumentError` about `name`."""
    if isinstance(value, str):
        text = value.strip()
        text = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
        value = text.split(",")[: _MOST_SIGMAS + 1] if text.strip() else []
    if hasattr(value, "tolist"):  # an array of numpy's or torch's
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise ArgumentError.of(name, _SIGMAS, value)
    if len(value) > _MOST_SIGMAS:
        raise ArgumentError(f"{name} must be at most {_MOST_SIGMAS} numbers, got more", parameter=name)
    levels = []
    for each in value:
        try:
            levels.append(number(name, each))
        except ArgumentError:
            raise ArgumentError.of(name, _SIGMAS, each) from None
    return tuple(levels)


def cache(name: str, value: object) -> str | dict[str, Any]:
    """Read how steps may be saved: a name, as `fast`; `method=velocity,order=1`, or an object of such fields, in which
    null is the default. Raises `ArgumentError` about `name`."""
    allowed = "off, quality, fast, or fields as method=blocks,threshold=0.1"
    if value is False:
        return "off"
    if isinstance(value, str) and "=" not in value:
        return value.strip().lower()
    if isinstance(value, str):
        pairs = [field.partition("=") for field in value.split(",")[: len(CACHE_FIELDS) + 1]]
        fields: Mapping[Any, Any] = {field.strip(): said for field, _, said in pairs}
        if len(fields) < len(pairs) or any(field in CACHE_FIELDS and not said for field, said in fields.items()):
            raise ArgumentError.of(name, allowed, value)
    elif isinstance(value, Mapping):
        fields = {field: said for field, said in value.items() if said not in (None, "")}
    else:
        raise ArgumentError.of(name, allowed, value)
    for field in fields:
        if field not in CACHE_FIELDS:
            shown = shortened(str(field), _SHOWN)
            raise ArgumentError(f"{name} has the fields {', '.join(CACHE_FIELDS)}, got {shown!r}", parameter=name)
    try:
        return {field: CACHE_FIELDS[field](f"{name}.{field}", said) for field, said in fields.items()}
    except ArgumentError as error:
        raise ArgumentError(error.message, parameter=name) from None


def identifier(name: str, value: object) -> str:
    """Read a name of somebody, which may be a number. Raises `ArgumentError` about `name`."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _HUGE:
        return str(value)
    raise ArgumentError(f"{name} must be a text", parameter=name)


def _word(_: str, value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _finite(name: str, value: object) -> float:
    if not math.isfinite(read := number(name, value)):
        raise ArgumentError.of(name, "a finite number", value)
    return read


# The fields of a cache that is given as such, and how to read each.
CACHE_FIELDS: Mapping[str, Callable[[str, Any], Any]] = {
    "method": _word,
    **dict.fromkeys(("warmup_steps", "max_consecutive", "order", "max_cached", "first_blocks", "last_blocks"), whole),
    "threshold": _finite,
}


def _format(name: str, value: object) -> object:
    word = _word(name, value)
    return "jpeg" if word == "jpg" else word


# How to read each parameter whose value may be sent otherwise than we have it.
READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "seed": seed_of,
    **dict.fromkeys(("steps", "width", "height", "num_images", "priority"), whole),
    **dict.fromkeys(("output_compression", "preview_every", "partial_images", "mask_crop", "mask_feather"), whole),
    **dict.fromkeys(("guidance", "guidance_from", "guidance_until", "mu", "timeout_s", "strength"), number),
    **dict.fromkeys(("metadata", "explain", "stream", "progress"), switch),
    "output_format": _format,
    "outpaint": outpaint,
    "cache": cache,
    "sigmas": sigmas,
    **dict.fromkeys(("guidance_outside", "moderation"), _word),
    "user": identifier,
}
# Texts that may be empty. Of all other parameters an empty one is what a form has where nothing was filled in.
TEXTS = frozenset({"prompt", "negative_prompt", "output", "request_id", "idempotency_key"})
