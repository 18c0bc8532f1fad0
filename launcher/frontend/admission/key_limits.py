"""How much each key may have: the file that says it, and what a key has had. Pure but for reading the file.

A file in TOML: a table `[default]` for every key, and a table `[keys.NAME]` for what is different for one. Who has sent
no key is `anonymous`.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from engine.errors import ArgumentError, RateLimitedError
from launcher.messages.api_keys import ANONYMOUS, NAME_ALLOWED, is_key_name, read_lines
from launcher.messages.limits import is_number
from launcher.requests.check import MAX_PRIORITY

_MOST = 1_000_000
_RANGES = {  # lowest and highest; whether it must be a whole number
    "concurrency": (1, _MOST, True),
    "requests_per_minute": (0.001, _MOST, False),
    "queue_share": (0.0, 1.0, False),
    "priority_max": (-MAX_PRIORITY, MAX_PRIORITY, True),
}


@dataclass(frozen=True)
class KeyLimit:
    """What one key may have. None for no limit of its own.

    concurrency: requests that have not ended. requests_per_minute: on average, as many at once after a quiet minute.
    queue_share: the part of the server's `max_queue` that its waiting requests may be, at least one. priority_max: the
    greatest priority.
    """

    concurrency: int | None = None
    requests_per_minute: float | None = None
    queue_share: float | None = None
    priority_max: int | None = None


@dataclass(frozen=True)
class KeyLimits:
    """The limits of all keys: those of some by name, and the others'."""

    default: KeyLimit
    named: Mapping[str, KeyLimit]

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> KeyLimits:
        """Read a file. Raises `ArgumentError`, which names file, table, key and value, and what is allowed."""
        try:
            tables = tomllib.loads("\n".join(read_lines("key_limits", file)))
        except (ValueError, RecursionError) as error:  # also of an int with thousands of digits
            raise _damaged(file, f"it is not TOML: {error}") from None
        _check_names(file, "", tables, ("default", "keys"))
        default = _read_limit(file, "default", tables.get("default", {}), KeyLimit())
        named = _table(file, "keys", tables.get("keys", {}))
        for name in named:
            if not is_key_name(name) and name != ANONYMOUS:
                raise _damaged(file, f"keys.{name[:80]!a}: a name must be {NAME_ALLOWED}")
        return cls(default, {name: _read_limit(file, f"keys.{name}", named[name], default) for name in named})

    def of(self, caller: str) -> KeyLimit:
        """Give what a caller may have."""
        return self.named.get(caller, self.default)


@dataclass(frozen=True)
class InFlight:
    """What a caller has: requests that have not ended, those of them that wait, seconds until the first of them is
    done, None if that is not known, and those that have not been counted by the minute yet."""

    unfinished: int
    waiting: int
    first_done_s: float | None
    uncounted: int = 0


class Allowances:
    """Counts what callers have had against the limits in a file, if there is one. Times are seconds of any clock."""

    def __init__(self, max_queue: int, file: str | None) -> None:
        self._max_queue = max_queue
        self.limits = None if file is None else KeyLimits.read(file)
        self._buckets: dict[str, tuple[float, float]] = {}  # by caller: requests that it may send, and when that was so

    def read(self, file: str) -> int:
        """Read the limits again. Returns how many keys have some of their own. Raises what `KeyLimits.read` does: then
        the limits stay as they are."""
        self.limits = KeyLimits.read(file)
        return len(self.limits.named)

    def check(self, caller: str, priority: int, in_flight: InFlight, now: float) -> None:
        """Raise `RateLimitedError` with the time to come back if a new request of a caller is one too many, and
        `ArgumentError` for a priority that the caller may not use. The request counts once it is taken (`count`)."""
        if self.limits is None:
            return
        limit = self.limits.of(caller)
        most_waiting = None if limit.queue_share is None else max(1, math.floor(limit.queue_share * self._max_queue))
        if limit.priority_max is not None and priority > limit.priority_max:
            allowed = f"at most {limit.priority_max} with the key {caller}"
            raise ArgumentError.of("priority", allowed, priority)
        for name, most, has, what in (
            ("concurrency", limit.concurrency, in_flight.unfinished, "that have not ended"),
            ("queue_share", most_waiting, in_flight.waiting, "that wait"),
        ):
            if most is not None and has >= most:
                told = f"the key {caller} has {has} requests {what}, and may have {most} ({name})"
                raise _too_many(told, in_flight.first_done_s or 1.0)
        per_minute = limit.requests_per_minute
        if per_minute is not None and (left := self._left(caller, per_minute, now) - in_flight.uncounted) < 1:
            told = f"the key {caller} may send {per_minute:g} requests a minute (requests_per_minute)"
            raise _too_many(told, (1 - left) * 60 / per_minute)

    def count(self, caller: str, now: float) -> None:
        """Count a request of a caller by the minute."""
        per_minute = None if self.limits is None else self.limits.of(caller).requests_per_minute
        if per_minute is not None:
            self._buckets[caller] = (self._left(caller, per_minute, now) - 1, now)

    def _left(self, caller: str, per_minute: float, now: float) -> float:
        """How many requests a caller's bucket has, which is full with a minute's requests, at least one."""
        full = max(1.0, per_minute)
        left, then = self._buckets.get(caller, (full, now))
        return min(full, left + (now - then) * per_minute / 60)


def _too_many(told: str, wait_s: float) -> RateLimitedError:
    wait_s = max(1.0, wait_s)
    return RateLimitedError(f"{told}: try again in about {math.ceil(wait_s)} s", retry_after_s=wait_s)


def _read_limit(file: str | os.PathLike[str], path: str, value: Any, default: KeyLimit) -> KeyLimit:
    table = _table(file, path, value)
    _check_names(file, f"{path}.", table, [field.name for field in fields(KeyLimit)])
    for name, number in table.items():
        low, high, whole = _RANGES[name]
        fits = is_number(number) and low <= number <= high and not (whole and int(number) != number)
        if not fits or (name == "queue_share" and number == 0):
            kind = "a whole number" if whole else "a number"
            edge = "above 0 and at most 1" if name == "queue_share" else f"between {low:g} and {high:.16g}"
            raise _damaged(file, f"{path}.{name} must be {kind} {edge}, got {_shown(number)}")
    return replace(default, **{name: int(number) if _RANGES[name][2] else number for name, number in table.items()})


def _table(file: str | os.PathLike[str], path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _damaged(file, f"{path} must be a table, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    try:
        return str(value)[:80]
    except ValueError:  # a hexadecimal number that is too long in decimal digits
        return "a number that is too long to be shown"


def _check_names(file: str | os.PathLike[str], path: str, table: Mapping[str, Any], known: Any) -> None:
    for name in table:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {close[0]}?" if close else f", allowed are {', '.join(known)}"
            raise _damaged(file, f"unknown {path}{name[:80]}{hint}")


def _damaged(file: str | os.PathLike[str], problem: str) -> ArgumentError:
    return ArgumentError(f"key_limits {os.fspath(file)}: {problem}", parameter="key_limits")
