"""The schedule that a LoRA was made for, as its file's header says it: few-step LoRAs draw well with no other.

No standard names where a file says that. These keys of ours are read, each a number or a list in JSON: `krea2.sigmas`,
`krea2.steps`, `krea2.mu`, `krea2.shift` (which is exp(mu)) and `krea2.guidance`, on Krea's scale. Of others' names
`sigmas` and `num_inference_steps` mean nothing else; `mu` and `shift` are read where one of these two is there. `steps`
is not: trainers write there how long they trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine.config.bounded_json import JsonLimits, read_json
from engine.errors import printable, shortened
from engine.sigmas import MOST_MU, SIGMAS_ALLOWED, are_sigmas, without_last_zero

MOST_SIGMAS = 1000
_MOST_GUIDANCE = 100.0
_LIMITS = JsonLimits(values=MOST_SIGMAS + 2, depth=1, key=0, string=0)
_LONGEST_TEXT = 32 * MOST_SIGMAS  # characters
_SHOWN = 60  # characters of a value
_NOT_GIVEN = ("", "None", "null")
# What each key says.
_OURS = {f"krea2.{name}": name for name in ("sigmas", "steps", "mu", "shift", "guidance")}
_CERTAIN = {"sigmas": "sigmas", "num_inference_steps": "steps"}
_BESIDE_THEM = {"mu": "mu", "shift": "shift"}


@dataclass(frozen=True)
class LoraSchedule:
    """What an image gets that is drawn with the LoRA and asks for nothing else; None for the checkpoint's own.

    sigmas: noise levels before mu shifts them, as many as steps. guidance: on Krea's scale.
    """

    steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    mu: float | None = None
    guidance: float | None = None

    @property
    def decides_steps(self) -> bool:
        """Whether it says more than a guidance."""
        return (self.steps, self.sigmas, self.mu) != (None, None, None)

    def describe(self) -> str:
        """Say it in a few words, as `4 steps, sigmas 1, 0.75, 0.5, 0.25, mu 0`."""
        parts = []
        if self.steps is not None:
            parts.append(f"{self.steps} step{'' if self.steps == 1 else 's'}")
        if self.sigmas is not None:
            parts.append(f"sigmas {describe_sigmas(self.sigmas)}")
        if self.mu is not None:
            parts.append(f"mu {self.mu:g}")
        if self.guidance is not None:
            parts.append(f"guidance {self.guidance:g}")
        return ", ".join(parts)


def describe_sigmas(sigmas: tuple[float, ...], most: int = 8) -> str:
    """List noise levels, at most so many of them."""
    shown = [f"{sigma:.4g}" for sigma in sigmas]
    if len(shown) > most:
        shown = [*shown[: most - 2], "…", shown[-1]]
    return ", ".join(shown)


def read_schedule(metadata: Mapping[str, str]) -> tuple[LoraSchedule | None, str]:
    """Read a header's metadata. Returns the schedule, None if it says none, and why what it says is not taken, empty if
    it is."""
    given = {key: text for key, text in metadata.items() if text.strip() not in _NOT_GIVEN}
    keys = _OURS | (_CERTAIN | _BESIDE_THEM if _CERTAIN.keys() & given.keys() else {})
    values: dict[str, Any] = {}
    for key, name in keys.items():
        if key not in given:
            continue
        allowed, read = _READERS[name]
        value = read(_json(given[key]))
        if value is None:
            found = shortened(printable(given[key]), _SHOWN)
            return None, f"the schedule in its header was ignored: {key} must be {allowed}, got {found}"
        name, value = ("mu", math.log(value)) if name == "shift" else (name, value)
        if values.setdefault(name, value) != value:
            return None, f"the schedule in its header was ignored: {key} contradicts another key"
    if "sigmas" in values:
        count = len(values["sigmas"])
        if values.setdefault("steps", count) != count:
            return None, f"the schedule in its header was ignored: it has {count} sigmas for {values['steps']} steps"
    return (LoraSchedule(**values) if values else None), ""


def _json(text: str) -> Any:
    """Parse a number or a list of some; None for what is neither."""
    try:
        return read_json(text, _LIMITS) if len(text) <= _LONGEST_TEXT else None
    except ValueError:
        return None


def _between(low: float, high: float, value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and low <= value <= high else None


def _steps(value: Any) -> int | None:
    steps = _between(1, MOST_SIGMAS, value)
    return int(steps) if steps is not None and steps.is_integer() else None


def _sigmas(value: Any) -> tuple[float, ...] | None:
    levels = [_between(0, 1, each) for each in value] if isinstance(value, list) else []
    sigmas = without_last_zero([level for level in levels if level is not None])
    return sigmas if None not in levels and len(sigmas) <= MOST_SIGMAS and are_sigmas(sigmas) else None


def _numbers(low: float, high: float) -> tuple[str, Callable[[Any], float | None]]:
    return f"a number between {low:.4g} and {high:.4g}", partial(_between, low, high)


_READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "sigmas": (f"a list in JSON of at most {MOST_SIGMAS} {SIGMAS_ALLOWED}", _sigmas),
    "steps": (f"a whole number between 1 and {MOST_SIGMAS}", _steps),
    "mu": _numbers(-MOST_MU, MOST_MU),
    "shift": _numbers(math.exp(-MOST_MU), math.exp(MOST_MU)),
    "guidance": _numbers(0, _MOST_GUIDANCE),
}
