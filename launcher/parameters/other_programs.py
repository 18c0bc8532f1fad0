"""What a parameter of another program is here, and how values that are written otherwise there are read. `table.py` has
all of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import ArgumentError
from launcher.parameters.values import number, switch, whole


@dataclass(frozen=True)
class OtherParameter:
    """A parameter of other programs, under each of its `names`.

    here: what becomes of it, as a phrase. own: the parameter of ours that it is; else it is refused, or where `ignored`
    passed over, with that phrase. read: makes ours of its name and value. nothing: values with which it asks for
    nothing, besides those that are empty or false. quiet: nothing is said, since clients send it by habit.

    taken_as: a warning where ours only resembles it; then it also gives way to whatever else says what ours is.
    besides: others of ours that it implies, where nothing else says them. switch: one of theirs that turns it off.
    """

    names: tuple[str, ...]
    programs: str
    here: str
    own: str | None = None
    ignored: bool = False
    read: Callable[[str, Any], Any] = lambda _, value: value
    nothing: tuple[object, ...] = ()
    quiet: bool = False
    taken_as: str = ""
    besides: tuple[tuple[str, object], ...] = ()
    switch: str = ""

    @property
    def said(self) -> str:
        """`here` in an error or a warning."""
        return self.here.replace("`", "")

    def asks_for_nothing(self, value: object) -> bool:
        """Whether it is as if it had been left out."""
        return asks_for_nothing(value, self.nothing)


def asks_for_nothing(value: object, nothing: tuple[object, ...] = ()) -> bool:
    """Whether a value says what leaving it out says: it is empty, false, none or one of `nothing`."""
    if isinstance(value, str):
        return value.lower() in ("", "false", "none", *nothing)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value in nothing
    return value is None or value is False or (isinstance(value, list | tuple | Mapping) and not value)


def less(name: str, value: object) -> float:
    """Make Krea's scale of one that is 1 more: u + s·(c − u) is c + (s − 1)·(c − u)."""
    scale = number(name, value)
    if scale < 1:
        raise ArgumentError.of(name, "1, which is off, or more", value)
    return float(scale) - 1


def logarithm(name: str, value: object) -> float:
    shift = number(name, value)
    instead = f": for {shift:g} give mu {math.log(shift):.4g}" if shift > 0 else ""
    raise ArgumentError(f"{name} is not taken: mu is its logarithm{instead}", parameter=name)


def inverse(name: str, value: object) -> float:
    kept = number(name, value)
    instead = f": for {kept:g} give {1 - kept:.4g}" if 0 <= kept <= 1 else ""
    raise ArgumentError(f"{name} is not taken: strength is 1 less it, what is drawn anew{instead}", parameter=name)


def quality(name: str, value: object) -> int:
    words = {"maximum": 100, "high": 90, "medium": 55, "low": 35}
    return words.get(value.lower(), 0) or whole(name, value) if isinstance(value, str) else whole(name, value)


def size(name: str, value: object) -> str:
    if isinstance(value, Mapping) and value.keys() == {"width", "height"}:
        return f"{whole(f'{name}.width', value['width'])}x{whole(f'{name}.height', value['height'])}"
    if isinstance(value, str) and value.lower() in _FAL_SIZES:
        return _FAL_SIZES[value.lower()]
    if isinstance(value, str) and value[:1].isdigit() and value[-1:].isdigit():
        return value
    raise ArgumentError.of(name, "WIDTHxHEIGHT, as 512x768", value)


def shape(name: str, value: object) -> str:
    sides = _SHAPE.fullmatch(value) if isinstance(value, str) else None
    told = "give size, or width and height"
    if sides is not None:
        ratio = int(sides[1]) / int(sides[2])
        width, height = (round(1024 * side / 16) * 16 for side in (ratio**0.5, ratio**-0.5))
        told = f"give size, as {width}x{height} for {value}"
    raise ArgumentError(f"{name} is not taken: {told}", parameter=name)


def loras(name: str, value: object) -> object:
    return [as_choice(each) for each in (value if isinstance(value, list) else [value])]


def as_choice(lora: object) -> object:
    """Give a LoRA of a request our names, if all that it has are names of other programs or ours; else it stays."""
    if not isinstance(lora, Mapping) or not lora.keys() <= {*_OF_LORAS, *_NAMELESS}:
        return lora
    choice: dict[str, object] = {}
    for name, value in lora.items():
        if name in _OF_LORAS and value is not None:
            choice.setdefault(_OF_LORAS[name], value)
    path = next((lora[name] for name in _PATHS if lora.get(name) is not None), None)
    return choice if "name" in choice or path is None else {"name": path, **choice}


def step_cache(name: str, value: object) -> str:
    """Read whether steps are to be saved, by what ours is called."""
    return "quality" if switch(name, value) else "off"


def dbcache(name: str, value: object) -> dict[str, object]:
    """Read cache-dit's parameters of DBCache, as SGLang takes them; what is left out is as in `cache`."""
    if not isinstance(value, Mapping):
        raise ArgumentError.of(name, f"an object of {', '.join(_OF_DBCACHE)}", value)
    given = {key: each for key, each in value.items() if each is not None}
    cache: dict[str, object] = {"method": "blocks"}
    for key, each in given.items():
        if key not in _OF_DBCACHE and asks_for_nothing(each, (1,)):
            continue
        if key not in _OF_DBCACHE:
            raise ArgumentError.of(name, f"an object of {', '.join(_OF_DBCACHE)}", key)
        own, read = _OF_DBCACHE[key]
        cache[own] = read(f"{name}.{key}", each)
    for own in ("max_cached", "max_consecutive"):
        if cache.get(own) == _UNLIMITED:
            cache[own] = MOST_SAVED
    if not cache.pop("forecasts", True):
        cache["order"] = 0
    return cache


def named_of_dbcache(message: str) -> str:
    """Name what an error is about, a field of `cache`, as cache-dit's parameters do."""
    for theirs, (own, _) in _OF_DBCACHE.items():
        message = re.sub(rf"\bcache\.{own}\b", f"cache_dit_params.{theirs}", message)
    return message


def gate(name: str, value: object) -> float:
    """Read the fraction after which guidance is not computed anew: there its first step always is."""
    return number(name, value) or _FIRST_STEP


MOST_SAVED = 200  # steps, more than which no image has
_UNLIMITED = -1
_FIRST_STEP = 1e-6  # of the schedule
_OF_DBCACHE: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "Fn_compute_blocks": ("first_blocks", whole),
    "Bn_compute_blocks": ("last_blocks", whole),
    "residual_diff_threshold": ("threshold", number),
    "max_warmup_steps": ("warmup_steps", whole),
    "max_cached_steps": ("max_cached", whole),
    "max_continuous_cached_steps": ("max_consecutive", whole),
    "enable_taylorseer": ("forecasts", switch),
    "taylorseer_order": ("order", whole),
}
_SHAPE = re.compile(r"([1-9][0-9]?):([1-9][0-9]?)")
_FAL_SIZES = {
    "square_hd": "1024x1024",
    "square": "512x512",
    "portrait_4_3": "768x1024",
    "portrait_16_9": "576x1024",
    "landscape_4_3": "1024x768",
    "landscape_16_9": "1024x576",
}
_PATHS = ("path", "lora_path", "local_path", "lora_local_path")
_NAMELESS = (*_PATHS, "int_id", "lora_int_id")
_OF_LORAS = {
    **dict.fromkeys(("name", "lora_name", "adapter"), "name"),
    **dict.fromkeys(("strength", "scale", "lora_scale", "weight"), "strength"),
}
