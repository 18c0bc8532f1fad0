"""What diffusers and other image servers call the parameters of a request, in our names.

For every door: HTTP, Python, and the lines of a file of prompts.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from engine.errors import ArgumentError
from launcher.messages.limits import Limits

# Of HTTP and OpenAI, too. `size` is width and height in one.
ALIASES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "n": "num_images",
    "num_images_per_prompt": "num_images",
}
RANDOM_SEED = -1  # a seed that asks for one that is drawn
_FIRST_SEED, _LAST_SEED = -(2**63), 2**64 - 1  # that clients send, signed or not
_SIZE = re.compile(r"([0-9]{1,6})(?:[xX×*]([0-9]{1,6}))?")
_NO_GUIDANCE = 1.0  # SGLang's guidance_scale is Krea's and 1, so that this is its way to have none
GUIDANCE_IS_OFF = "guidance_scale 1 was taken for off, as SGLang means it; for Krea's own 1, say guidance 1"


def in_own_names(given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Rename the parameters of a request, and split its `size`; what is None counts as not given. Returns warnings,
    too.

    Raises `ArgumentError` if two names of one parameter have different values, or for a size that is none.
    """
    named = {name: value for name, value in given.items() if value is not None}
    own = {name: value for name, value in named.items() if name not in ALIASES and name != "size"}
    warnings: tuple[str, ...] = ()
    meant = [(ALIASES[name], name, value) for name, value in named.items() if name in ALIASES]
    if named.get("guidance_scale") == _NO_GUIDANCE:
        meant = [(name, alias, 0.0 if alias == "guidance_scale" else value) for name, alias, value in meant]
        warnings = (GUIDANCE_IS_OFF,)
    if "size" in named and named["size"] != "auto":
        width, height = read_size("size", named["size"])
        meant += [("width", "size", width), ("height", "size", height)]
    for name, alias, value in meant:
        if own.setdefault(name, value) != value:
            says = " 1, which is off" if alias == "guidance_scale" and warnings else f", which says {value}"
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
    if not _FIRST_SEED <= seed <= _LAST_SEED:
        raise ArgumentError.of("seed", f"between {_FIRST_SEED} and {_LAST_SEED}", seed)
    return max(0, min(seed % (limits.max_seed + 1), limits.max_seed - (num_images - 1)))


def describe_seed(seed: int, used: int, limits: Limits) -> str:
    """Say what `usable_seed` made of a seed."""
    return f"seed {seed} was reduced to {used}, which draws the same: seeds are between 0 and {limits.max_seed}"
