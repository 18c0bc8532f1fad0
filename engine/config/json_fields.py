"""Json files read field by field, every one checked for type and range.

Complaints name the file, the key, what was expected and what was found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError

# No real model comes near it; a config beyond it is damaged, and would otherwise ask for absurd memory.
LARGEST_WIDTH = 1 << 20

_REQUIRED: Any = object()


class JsonFields:
    """A json object of a known file: every getter checks type and range, and complains with file and key."""

    def __init__(self, file: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.file = file
        self.values = values
        self.prefix = prefix

    @classmethod
    def read(cls, file: Path) -> JsonFields:
        return cls(file, read_json_object(file))

    def error(self, key: str, expected: object, found: object) -> CheckpointError:
        shown = json.dumps(found, default=str)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return CheckpointError.of(
            self.file, "has a value that does not fit", name=self.prefix + key, expected=expected, found=shown
        )

    def _get(self, key: str, default: Any) -> Any:
        # null stands for "not set" in configs that diffusers and transformers write
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise CheckpointError.of(self.file, "is missing", name=self.prefix + key)
            return default
        return value

    def has(self, key: str) -> bool:
        """Whether there is a value, for keys without which the defaults are another key's."""
        return self.values.get(key) is not None

    def expect(self, key: str, expected: object, default: Any = _REQUIRED) -> None:
        value = self._get(key, default)
        if value != expected or type(value) is not type(expected):
            raise self.error(key, json.dumps(expected), value)

    def expect_divisible(self, name: str, value: int, divisor_name: str, divisor: int) -> None:
        if value % divisor:
            raise self.error(name, f"a multiple of {divisor_name} {divisor}", value)

    def section(self, key: str, default: JsonFields) -> JsonFields:
        value = self._get(key, None)
        if value is None:
            return default
        if not isinstance(value, dict):
            raise self.error(key, "an object", value)
        return JsonFields(self.file, value, f"{self.prefix}{key}.")

    def text(self, key: str, *, most: int) -> str:
        value = self._get(key, _REQUIRED)
        if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable():
            raise self.error(key, f"a text of 1 to {most} printable characters", value)
        return value

    def texts(self, key: str, *, most: int) -> tuple[str, ...]:
        value = self._list(key, _REQUIRED)
        if not 0 < len(value) <= most or not all(isinstance(item, str) for item in value):
            raise self.error(key, f"a list of 1 to {most} texts", value)
        return tuple(value)

    def boolean(self, key: str, default: bool | None) -> bool | None:
        value = self._get(key, default)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def integer(
        self, key: str, default: int = _REQUIRED, *, least: int = 1, most: int = LARGEST_WIDTH, multiple_of: int = 1
    ) -> int:
        value = self._get(key, default)
        if not _is_integer(value) or not least <= value <= most or value % multiple_of:
            multiple = f", a multiple of {multiple_of}" if multiple_of > 1 else ""
            raise self.error(key, f"a whole number from {least} to {most}{multiple}", value)
        return value

    def number(
        self, key: str, default: float = _REQUIRED, *, above: float = -math.inf, below: float = math.inf
    ) -> float:
        value = self._get(key, default)
        if not _is_number(value) or not above < value < below:
            raise self.error(key, f"a number above {above:g} and below {below:g}", value)
        return float(value)

    def integers(self, key: str, default: tuple[int, ...], *, least: int) -> tuple[int, ...]:
        value = self._list(key, default)
        if not value or not all(_is_integer(item) and least <= item <= LARGEST_WIDTH for item in value):
            raise self.error(key, f"a list of whole numbers from {least}", value)
        return tuple(value)

    def three_integers(self, key: str, default: tuple[int, int, int]) -> tuple[int, int, int]:
        value = self.integers(key, default, least=0)
        if len(value) != 3:
            raise self.error(key, "three numbers", value)
        return value[0], value[1], value[2]

    def booleans(self, key: str, default: tuple[bool, ...]) -> tuple[bool, ...]:
        value = self._list(key, default)
        if not all(isinstance(item, bool) for item in value):
            raise self.error(key, "a list of true and false", value)
        return tuple(value)

    def numbers(self, key: str, *, length: int) -> tuple[float, ...]:
        value = self._list(key, _REQUIRED)
        if len(value) != length or not all(_is_number(item) for item in value):
            raise self.error(key, f"a list of {length} numbers", value)
        return tuple(float(item) for item in value)

    def _list(self, key: str, default: Any) -> list[Any] | tuple[Any, ...]:
        value = self._get(key, default)
        if not isinstance(value, (list, tuple)):
            raise self.error(key, "a list", value)
        return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def read_json_object(file: Path) -> dict[str, Any]:
    """Parse a json file that must hold an object. Raises `CheckpointError`."""
    try:
        if file.exists() and not file.is_file():  # reading a pipe would wait for ever
            raise CheckpointError.of(file, "is not a file")
        text = file.read_bytes()
    except FileNotFoundError:
        raise CheckpointError.of(file, "the file is missing") from None
    except OSError as error:
        raise CheckpointError.of(file, f"cannot be read: {error.strerror}") from None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError.of(file, f"is not valid json: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError.of(file, "does not hold a json object", found=type(values).__name__)
    return values
