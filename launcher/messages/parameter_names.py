"""What diffusers and other image servers call the parameters of a request, in our names, and their values.

For every door: HTTP, Python, and the lines of a file of prompts.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import ArgumentError, shortened
from launcher.messages.limits import Limits
from launcher.parameters.other_programs import as_choice
from launcher.parameters.table import OTHERS
from launcher.parameters.values import PICTURES, READERS, TEXTS, seed_of

# Of HTTP and OpenAI, too. `size` is width and height in one.
ALIASES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "n": "num_images",
    "num_images_per_prompt": "num_images",
    "safety_identifier": "user",
}
# And all others that are the same.
SYNONYMS = {**ALIASES, **{name: other.own for name, other in OTHERS.items() if other.own is not None}}
PROMPTS = ("prompt", "negative_prompt")
RANDOM_SEED = -1  # a seed that asks for one that is drawn
_SIZE = re.compile(r"([0-9]{1,6})(?:[xX×*]([0-9]{1,6}))?")
_NO_GUIDANCE = 1.0  # SGLang's guidance_scale is Krea's and 1, so that this is its way to have none
_SHOWN = 40  # characters of a value that contradicts another
GUIDANCE_IS_OFF = "guidance_scale 1 was taken for off, as SGLang means it; for Krea's own 1, say guidance 1"


def read(given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read the parameters of a request as programs send them: numbers that are text, what a form has where nothing was
    filled in, and other programs' names. `ALIASES` and names that nobody has stay. Returns warnings, too.

    Raises `ArgumentError` for a value that is none of its parameter, for a parameter that cannot be, and if two names
    of one have different values.
    """
    plain: dict[str, Any] = {}
    warnings: list[str] = []
    others: list[tuple[str, str, Any]] = []
    weak: list[tuple[str, Any, str]] = []  # which hold where nothing else says the same, with warnings
    pairs = list(_without_extra_body(given))
    off = {name for name, value in pairs if value is False or (isinstance(value, str) and value.lower() == "false")}
    for name, value in pairs:
        other = OTHERS.get(name)
        if value is None or (isinstance(value, str) and not value and name not in TEXTS):
            continue
        if other is None:
            plain[name] = _read_value(name, name, value)
        elif other.ignored:
            if not (other.quiet or other.asks_for_nothing(value)):
                warnings.append(f"{name} was ignored: {other.said}")
        elif not (other.asks_for_nothing(value) or other.switch in off):
            if other.own is None:
                raise ArgumentError(f"{name} is not taken: {other.said}", parameter=name)
            read_value = _read_value(other.own, name, other.read(name, value))
            if other.taken_as:
                weak.append((other.own, read_value, other.taken_as.format(name=name)))
            else:
                others.append((other.own, name, read_value))
            weak.extend((own, value, "") for own, value in other.besides)
    if isinstance(size := plain.get("size"), str) and size.lower() == "auto":
        del plain["size"]
    for own, name, value in others:
        known = plain.setdefault(own, value)
        if known is not value and (own in PICTURES or known != value):  # arrays cannot be compared
            raise _contradiction(own, plain[own], name, value)
    for own, value, warning in weak:
        if own not in plain:
            plain[own] = value
            warnings += [warning] if warning else []
    return plain, tuple(warnings)


def in_own_names(given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read and rename the parameters of a request, and split its `size`; what is None counts as not given. Returns
    warnings, too.

    Raises `ArgumentError` for what `read` does, and for a size that is none.
    """
    named, warnings = read(given)
    own = {name: value for name, value in named.items() if name not in ALIASES and name != "size"}
    meant = [(ALIASES[name], name, value) for name, value in named.items() if name in ALIASES]
    is_off = named.get("guidance_scale") == _NO_GUIDANCE
    if is_off:
        meant = [(name, alias, 0.0 if alias == "guidance_scale" else value) for name, alias, value in meant]
        warnings = (*warnings, GUIDANCE_IS_OFF)
    if "size" in named:
        width, height = read_size("size", named["size"])
        meant += [("width", "size", width), ("height", "size", height)]
    for name, alias, value in meant:
        if alias == "safety_identifier":  # which OpenAI has in place of user, and clients send beside it
            own[name] = value
        elif own.setdefault(name, value) != value:
            says = " 1, which is off" if alias == "guidance_scale" and is_off else f", which says {value}"
            raise ArgumentError(f"{name} {own[name]} contradicts {alias}{says}", parameter=name)
    return own, warnings


def read_size(parameter: str, text: object) -> tuple[int, int]:
    """Read WIDTHxHEIGHT in pixels, with an x, × or * between them, or one number, of a square. Raises `ArgumentError`
    about the parameter."""
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ArgumentError.of(parameter, "WIDTHxHEIGHT, as 512x768", text)
    return int(match[1]), int(match[2] or match[1])


def draw_seed() -> int:
    """Draw the seed of a request that names none."""
    return secrets.randbelow(2**32)


def usable_seed(seed: int, limits: Limits, num_images: int = 1) -> int:
    """Reduce a seed to one with which all images of a request have allowed ones. Raises `ArgumentError` for one that is
    no integer of 64 bits."""
    return max(0, min(seed_of("seed", seed) % (limits.max_seed + 1), limits.max_seed - (num_images - 1)))


def describe_seed(seed: int, used: int, limits: Limits) -> str:
    """Say what `usable_seed` made of a seed."""
    return f"seed {seed} was reduced to {used}, which draws the same: seeds are between 0 and {limits.max_seed}"


def _without_extra_body(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield all parameters, those too in `extra_body`, which some programs send as their client calls it."""
    for name, value in given.items():
        if name != "extra_body" or not isinstance(value, Mapping):
            yield name, value
            continue
        for inner, more in value.items():
            if given.get(inner) not in (None, more):
                raise _contradiction(inner, given[inner], "extra_body", more)
            yield inner, more


def _contradiction(name: str, value: object, other: str, says: object) -> ArgumentError:
    if name in (*PROMPTS, *PICTURES):
        return ArgumentError(f"{name} contradicts {other}, which has another", parameter=name)
    shown, said = (shortened(str(each), _SHOWN) for each in (value, says))
    return ArgumentError(f"{name} {shown} contradicts {other}, which says {said}", parameter=name)


def _read_value(own: str, name: str, value: Any) -> Any:
    """Read the value of one of our parameters, under one of its names."""
    reader = READERS.get(ALIASES.get(own, own))
    if own == "loras" and isinstance(value, list | tuple):
        return [as_choice(each) for each in value]
    return value if reader is None else reader(name, value)
