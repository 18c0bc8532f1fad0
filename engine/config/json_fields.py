"""Reads json files field by field, and checks the type and range of each.

Complaints name the file, the key, what was expected and what was found.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, TypeVar

from engine.config.bounded_json import FILE_LIMITS, LARGEST_JSON, JsonLimits, read_json
from engine.config.in_its_place import LOOKED_AT, answer_in_its_place, in_its_place
from engine.errors import CheckpointError

# No real model comes near it; a config beyond it is damaged, and would otherwise ask for absurd memory.
LARGEST_WIDTH = 1 << 20

_REQUIRED: Any = object()
T = TypeVar("T")


def json_field(read: Callable[..., Any], key: str | None = None, **checks: Any) -> Any:
    """Make a dataclass's field that `JsonFields.build` reads with this getter. key: None for the field's own name."""
    return field(metadata={"read": read, "key": key, "checks": checks})


class JsonFields:
    """A json object of a known file.

    Its getters (text, boolean, integer, number and their plurals) give the value of a key, or the default, and raise
    `CheckpointError` if it has another type or is out of range, or if there is neither. prefix: what complaints put
    before a key, such as `text_config.` where the object lies in another.
    """

    def __init__(self, file: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.file = file
        self.values = values
        self.prefix = prefix

    @classmethod
    def read(cls, file: Path) -> JsonFields:
        return cls(file, read_json_object(file))

    def build(self, kind: type[T], **known: Any) -> T:
        """Read a dataclass of `json_field`s but for the fields that are known."""
        for each in fields(kind):  # type: ignore[arg-type]
            if each.name not in known:
                how = each.metadata
                known[each.name] = how["read"](self, how["key"] or each.name, **how["checks"])
        return kind(**known)

    def error(self, key: str, expected: object, found: object) -> CheckpointError:
        """Make the error for a value that does not fit."""
        shown = json.dumps(found, default=str)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return CheckpointError.of(
            self.file, "has a value that does not fit", name=self.prefix + key, expected=expected, found=shown
        )

    def has(self, key: str) -> bool:
        """Whether there is a value: null stands for "not set" in configs that diffusers and transformers write."""
        return self.values.get(key) is not None

    def expect(self, key: str, expected: object, default: Any = _REQUIRED) -> None:
        """Raise `CheckpointError` for any other value."""
        self._get(key, default, json.dumps(expected), lambda v: v == expected and type(v) is type(expected))

    def expect_divisible(self, name: str, value: int, divisor_name: str, divisor: int) -> None:
        """Raise `CheckpointError` if a value is no multiple of another."""
        if value % divisor:
            raise self.error(name, f"a multiple of {divisor_name} {divisor}", value)

    def section(self, key: str, default: JsonFields) -> JsonFields:
        """Give the object under a key, or the default where there is none."""
        if not self.has(key):
            return default
        value = self._get(key, None, "an object", lambda value: isinstance(value, dict))
        return JsonFields(self.file, value, f"{self.prefix}{key}.")

    def text(self, key: str, *, most: int) -> str:
        def fits(value: object) -> bool:
            return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()

        return self._get(key, _REQUIRED, f"a text of 1 to {most} printable characters", fits)

    def texts(self, key: str, *, most: int) -> tuple[str, ...]:
        expected = f"a list of 1 to {most} texts"
        return self._list(key, _REQUIRED, expected, lambda item: isinstance(item, str), (1, most))

    def boolean(self, key: str, default: bool | None) -> bool | None:
        return self._get(key, default, "true or false", lambda value: value is None or isinstance(value, bool))

    def integer(
        self, key: str, default: int = _REQUIRED, *, least: int = 1, most: int = LARGEST_WIDTH, multiple_of: int = 1
    ) -> int:
        def fits(value: Any) -> bool:
            return type(value) is int and least <= value <= most and value % multiple_of == 0

        multiple = f", a multiple of {multiple_of}" if multiple_of > 1 else ""
        return self._get(key, default, f"a whole number from {least} to {most}{multiple}", fits)

    def number(
        self, key: str, default: float = _REQUIRED, *, above: float = -math.inf, below: float = math.inf
    ) -> float:
        expected = f"a number above {above:g} and below {below:g}"
        return float(self._get(key, default, expected, lambda value: _is_number(value) and above < value < below))

    def integers(self, key: str, default: tuple[int, ...], *, least: int, length: int | None = None) -> tuple[int, ...]:
        """Give at least one, or as many as `length` says."""
        expected = f"a list of {'' if length is None else f'{length} '}whole numbers from {least}"
        lengths = (length or 1, length or math.inf)
        return self._list(key, default, expected, lambda v: type(v) is int and least <= v <= LARGEST_WIDTH, lengths)

    def booleans(self, key: str, default: tuple[bool, ...]) -> tuple[bool, ...]:
        return self._list(key, default, "a list of true and false", lambda item: isinstance(item, bool), (0, math.inf))

    def numbers(self, key: str, *, length: int) -> tuple[float, ...]:
        values = self._list(key, _REQUIRED, f"a list of {length} numbers", _is_number, (length, length))
        return tuple(map(float, values))

    def _list(
        self, key: str, default: Any, expected: str, fits: Callable[[Any], bool], lengths: tuple[float, float]
    ) -> tuple[Any, ...]:
        """A list of lengths[0] to lengths[1] items that fit."""

        def all_fit(items: object) -> bool:
            return isinstance(items, list | tuple) and lengths[0] <= len(items) <= lengths[1] and all(map(fits, items))

        return tuple(self._get(key, default, expected, all_fit))

    def _get(self, key: str, default: Any, expected: str, fits: Callable[[Any], bool]) -> Any:
        """The value of a key, or the default if it has none."""
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise CheckpointError.of(self.file, "is missing", name=self.prefix + key)
            value = default
        if not fits(value):
            raise self.error(key, expected, value)
        return value


def _is_number(value: Any) -> bool:
    """Whether it is a finite number, and an integer not too large for a float."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def read_json_object(file: Path) -> dict[str, Any]:
    """Parse a json file that must hold an object. Raises `CheckpointError`."""
    try:
        if file.exists() and not file.is_file():  # reading a pipe would wait for ever
            raise CheckpointError.of(file, "is not a file")
        with file.open("rb") as opened:
            text = opened.read(LARGEST_JSON + 1)
            size = len(text) if len(text) <= LARGEST_JSON else max(len(text), file.stat().st_size)
    except FileNotFoundError:
        raise CheckpointError.of(file, "the file is missing") from None
    except OSError as error:
        raise CheckpointError.of(file, f"cannot be read: {error.strerror}") from None
    if size > LARGEST_JSON:
        raise CheckpointError.of(file, "is too long", expected=f"at most {LARGEST_JSON} bytes", found=size)
    if not text:
        raise CheckpointError.of(file, "the file is empty")
    values = parse_json_object(file, text)
    if (answer := answer_in_its_place(values)) is not None:
        raise CheckpointError.of(file, answer)
    return values


def parse_json_object(
    file: str | Path, text: str | bytes, name: str | None = None, limits: JsonLimits = FILE_LIMITS
) -> dict[str, Any]:
    """Parse the text of a file, or of what is called `name` in it. Raises `CheckpointError` if it holds no object."""
    try:
        values = read_json(text, limits)
    except ValueError as error:
        other = in_its_place(text[:LOOKED_AT]) if isinstance(text, bytes) else None
        raise CheckpointError.of(file, other or f"is not valid json: {error}", name=name) from None
    if not isinstance(values, dict):
        raise CheckpointError.of(file, "does not hold a json object", name=name, found=type(values).__name__)
    return values
