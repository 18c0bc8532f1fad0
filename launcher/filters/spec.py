"""Reads what `--filter` was given, without importing what the filter needs."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import msgspec

from engine.errors import ArgumentError
from launcher.messages.configs import FilterSpec

NAMES = ("words", "classifier", "moderation", "chat", "python")
EVERY = "*"  # stands for every category that has no threshold of its own
NEVER = 2.0  # a threshold that no score reaches
MOST_FILTERS = 16
_MOST_CHARACTERS = 4096
_FORM = "NAME[:VALUE][,KEY=VALUE]…"
_OPTION = re.compile(r",(?=[a-z][a-z0-9_-]*=)")
_THRESHOLDS = {
    f"{prefix}{action}": (kind, action)
    for prefix, kind in (("", "auto"), ("low-", "low"))
    for action in ("block", "blur", "log")
}
_COMMON = (*_THRESHOLDS, "name", "workers", "timeout", "batch", "only")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def read_specs(texts: Iterable[str]) -> tuple[FilterSpec, ...]:
    """Read several filters. Raises `ArgumentError`, also for too many, and for two of the same name."""
    specs: list[FilterSpec] = []
    for text in texts:
        spec = read_spec(text)
        labels = [each.label for each in specs]
        if spec.label in labels and spec.label != spec.name:
            raise _error(f"two filters are called {spec.label!r}: give one another name=")
        if spec.label in labels:
            count = 2
            while f"{spec.name}-{count}" in labels:
                count += 1
            spec = msgspec.structs.replace(spec, label=f"{spec.name}-{count}")
        specs.append(spec)
    if len(specs) > MOST_FILTERS:
        raise _error(f"filters must be at most {MOST_FILTERS}, got {len(specs)}")
    return tuple(specs)


def read_spec(text: str) -> FilterSpec:
    """Read one filter, as it is typed. Raises `ArgumentError`, whose parameter is filters."""
    if not isinstance(text, str) or not 0 < len(text) <= _MOST_CHARACTERS or "\0" in text:
        raise ArgumentError.of("filters", f"each {_FORM} of at most {_MOST_CHARACTERS} characters", text)
    head, *rest = _OPTION.split(text)
    name, _, value = head.partition(":")
    if name not in NAMES:
        known = f"{_FORM} with a NAME of {', '.join(NAMES)}"
        raise _error(f"{ArgumentError.of('filters', known, text).message}{meant(name, NAMES)}")
    settings: dict[str, Any] = {}
    thresholds: dict[str, dict[str, dict[str, float]]] = {}
    options: dict[str, str] = {}
    for part in rest:
        key, _, given = part.partition("=")
        if key in _THRESHOLDS:
            moderation, action = _THRESHOLDS[key]
            category, score = _threshold(name, key, given)
            scores = thresholds.setdefault(moderation, {}).setdefault(action, {})
            if category in scores:
                raise wrong(name, f"{key}= is given twice for {category!r}")
            scores[category] = score
        elif key in settings or key in options:
            raise wrong(name, f"{key}= is given twice")
        elif key in _COMMON:
            settings[key] = _setting(name, key, given)
        else:
            options[key] = given
    module = importlib.import_module(f"launcher.filters.built_in.{name}")
    if module.OPTIONS is not None:
        for key in options:
            if key not in module.OPTIONS:
                raise _unknown(name, key, module.OPTIONS)
    return FilterSpec(
        name=name,
        label=settings.get("name", name),
        value=module.check_options(value, options),
        options=options,
        thresholds=thresholds,
        workers=settings.get("workers", 1),
        timeout_s=settings.get("timeout", 20.0),
        batch=settings.get("batch"),
        only=settings.get("only"),
    )


def _threshold(name: str, key: str, given: str) -> tuple[str, float]:
    """Read `CATEGORY:SCORE` or `SCORE`."""
    category, _, text = given.rpartition(":")
    if text == "never":
        return category or EVERY, NEVER
    try:
        score = float(text.encode("ascii"))
    except ValueError:
        score = -1.0
    if not 0 < score <= 1:
        allowed = "SCORE or CATEGORY:SCORE, with a score above 0 and at most 1, or never"
        raise must(name, f"{key}=", allowed, given)
    return category or EVERY, score


def _setting(name: str, key: str, given: str) -> Any:
    if key == "name":
        if not _LABEL.fullmatch(given):
            allowed = "up to 64 letters, digits and any of _ . -"
            raise must(name, "name=", allowed, given)
        return given
    if key == "only":
        if given not in ("prompts", "images"):
            raise must(name, "only=", "prompts or images", given)
        return given
    least, most = {"workers": (1, 16), "batch": (1, 256), "timeout": (0.1, 600.0)}[key]
    whole = key != "timeout"
    try:
        number = int(given) if whole else float(given)
    except ValueError:
        number = -1
    if not least <= number <= most or not given.isascii():
        kind = "a whole number" if whole else "seconds"
        raise must(name, f"{key}=", f"{kind} from {least} to {most}", given)
    return number


def _unknown(name: str, key: str, known: Collection[str]) -> ArgumentError:
    own = f"{', '.join(sorted(known))} and those of every filter, " if known else ""
    told = f"filter {name} has no option {key}=: it has {own}{', '.join(_COMMON)}"
    return _error(f"{told}{meant(key, (*known, *_COMMON))}")


def meant(given: str, known: Collection[str]) -> str:
    """Name the nearest of what is known, to be said behind an error; nothing if none is near."""
    close = get_close_matches(given, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def wrong(name: str, told: str) -> ArgumentError:
    """Say what is wrong with what the filter `name` was given."""
    return _error(f"filter {name}: {told}")


def must(name: str, option: str, allowed: str, value: str) -> ArgumentError:
    """Say what an option of the filter `name` must be, and what it was."""
    return wrong(name, ArgumentError.of(option, allowed, value).message)


def is_yes(name: str, options: Mapping[str, str], key: str, *, default: str = "no") -> bool:
    """Read an option that is yes or no. Raises `ArgumentError`."""
    value = options.get(key, default)
    if value not in ("yes", "no"):
        raise must(name, f"{key}=", "yes or no", value)
    return value == "yes"


def _error(message: str) -> ArgumentError:
    return ArgumentError(message, parameter="filters")


def thresholds_of(spec: FilterSpec, moderation: str) -> Mapping[str, Mapping[str, float]]:
    """The operator's thresholds, by action and category, for requests with this moderation."""
    auto = spec.thresholds.get("auto", {})
    return spec.thresholds.get("low", auto) if moderation == "low" else auto


def call_timeout_s(spec: FilterSpec) -> float:
    """How many seconds a filter may take over what it is given at once: half of what a check has, so that there is time
    for a second try."""
    return spec.timeout_s / 2
