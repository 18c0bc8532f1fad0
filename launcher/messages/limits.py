"""How much one request may ask for, and how many may wait."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from engine.config.model_config import MOST_GUIDANCE, MOST_STEPS
from engine.errors import ArgumentError


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and what may wait. Sides are in pixels, prompts in bytes of UTF-8.

    max_pixels: after rounding the sides up. max_queue: requests. max_loras: loaded at once; max_request_loras: chosen
    by one request. max_image_bytes, max_image_pixels: of a picture's file.
    """

    min_side: int = 64
    max_side: int = 4096
    max_pixels: int = 8_400_000
    max_steps: int = MOST_STEPS
    max_guidance: float = MOST_GUIDANCE
    max_images: int = 10
    max_seed: int = 2**53 - 1
    max_prompt_bytes: int = 16 * 1024
    max_queue: int = 256
    max_loras: int = 32
    max_request_loras: int = 8
    max_image_bytes: int = 50_000_000
    max_image_pixels: int = 64_000_000

    @classmethod
    def of(cls, changes: Mapping[str, float]) -> Limits:
        """Change some of the defaults. Raises `ArgumentError` for an unknown name or a value that is not allowed."""
        if not isinstance(changes, Mapping):
            raise ArgumentError.of("limits", "a mapping of names to numbers", changes)
        kinds = {field.name: float if field.name == "max_guidance" else int for field in fields(cls)}
        values: dict[str, float] = {}
        for name, value in changes.items():
            if name not in kinds:
                raise ArgumentError.of("limit", f"one of {', '.join(kinds)}", name)
            if not is_number(value) or not 0 < value < 2**63 or kinds[name](value) != value:
                allowed = "a positive number" if kinds[name] is float else "a positive whole number"
                raise ArgumentError(f"limit {name} must be {allowed}, got {value!r}", parameter="limit")
            values[name] = kinds[name](value)
        limits = cls(**values)  # type: ignore[arg-type]
        if limits.min_side > limits.max_side:
            raise ArgumentError(
                f"limit min_side {limits.min_side} must not be above max_side {limits.max_side}", parameter="limit"
            )
        return limits


_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SHORT = {"": "G", "g": "G", "m": "M", "k": "k"}  # units that leave open which is meant, and those that may be
_FEWEST_BYTES = 100_000  # of a number without a unit: below, it lacks one


def parse_bytes(name: str, value: int | str | None) -> int | None:
    """Read a number of bytes, as `16GB`, `15.5 GiB` or the number itself. Raises `ArgumentError` about `name`."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _FEWEST_BYTES:
        value = str(value)
    if not isinstance(value, str):
        return value  # which `EngineConfig` checks
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)", value.strip(), re.ASCII)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if match is not None and 0 < float(match[1]) < _FEWEST_BYTES and (short := match[2].lower()) in _SHORT:
        unit = f"{match[1]}{_SHORT[short]}"
        raise ArgumentError(f"{name} needs a unit: {unit}B or {unit}iB?", parameter=name)
    if match is None or match[2].lower() not in units:
        raise ArgumentError.of(name, f"a number with one of {', '.join(filter(None, _UNITS))}, as 16GB", value)
    return int(float(match[1]) * units[match[2].lower()])


def is_number(value: object) -> bool:
    """Whether a value is an int or a float; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
