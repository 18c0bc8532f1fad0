"""What is known of an option: which values it may have, and what the command line says of it.

An option is a field of a dataclass, made by `option` or a function below it: the field has its name, type and default,
and an `Option` the rest. The flags of `krea2` are made of it, and `launch` hands on its arguments by these names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from engine.errors import ArgumentError

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """Which values an option may have, and how `krea2 … --help` shows it.

    help: None where the command line does not have it. allowed: in words, what `fits` is true of. flag: the option's
    name on the command line, None for the field's own; metavar: what stands for its value there, None for that of its
    type. kind: the type of a value on the command line; repeated: whether there may be several. before: the field that
    it is listed before, None for the order of the fields.
    """

    help: str | None
    allowed: str
    fits: Callable[[Any], bool]
    flag: str | None = None
    metavar: str | None = None
    kind: type = str
    repeated: bool = False
    before: str | None = None


def option(
    default: Any, help: str | None = None, allowed: str = "", fits: Callable[[Any], bool] = lambda _: True, **more: Any
) -> Any:
    """A dataclass's field that is an option. more: further attributes of `Option`."""
    return field(default=default, metadata={_KEY: Option(help, allowed, fits, **more)})


def switch(default: bool, help: str | None = None, **more: Any) -> Any:
    return option(default, help, "True or False", lambda value: isinstance(value, bool), **more)


def one_of(values: Sequence[Any], default: Any, help: str, **more: Any) -> Any:
    def fits(value: object) -> bool:
        return value in values and not isinstance(value, bool)

    return option(default, help, f"one of {', '.join(map(str, values))}", fits, **more)


def path(help: str, allowed: str = "a path", **more: Any) -> Any:
    def fits(value: object) -> bool:
        return isinstance(value, str) and bool(value) and "\0" not in value

    return option(None, help, allowed, fits, **more)


def whole_number(least: int, most: int, allowed: str, help: str, **more: Any) -> Any:
    """An integer from `least` to `most`, or None."""

    def fits(value: object) -> bool:
        return type(value) is int and least <= value <= most

    return option(None, help, allowed, fits, **more)


def options_of(kind: type) -> dict[str, tuple[Any, Option]]:
    """The options of a dataclass by their names, in its order, each with its default."""
    return {each.name: (each.default, each.metadata[_KEY]) for each in fields(kind) if _KEY in each.metadata}


def check_options(values: Any) -> None:
    """Raise `ArgumentError` for the first option of a dataclass that has a value that it may not have.

    None fits where it is the default.
    """
    for name, (default, known) in options_of(type(values)).items():
        value = getattr(values, name)
        if (value is not None or default is not None) and not known.fits(value):
            raise ArgumentError.of(name, known.allowed, value)
