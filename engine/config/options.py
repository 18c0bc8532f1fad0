"""Describes options: which values they may have, and how the command line shows them.

An option is a field of a dataclass, made by `option` or a function below it: the field has its name, type and default,
and an `Option` the rest. The flags of `krea2` are made of it, and `launch` hands on its arguments by these names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from engine.errors import ArgumentError


@dataclass(frozen=True)
class Option:
    """Which values an option may have, and how `krea2 … --help` shows it.

    help: None where the command line does not have it. allowed: in words, what `fits` is true of. flag: its name on the
    command line, None for the field's; metavar: what stands for its value there, None for that of its type. kind: the
    type of a value there; repeated: whether there may be several.
    """

    help: str | None
    allowed: str
    fits: Callable[[Any], bool]
    flag: str | None = None
    metavar: str | None = None
    kind: type = str
    repeated: bool = False


def option(
    default: Any, help: str | None = None, allowed: str = "", fits: Callable[[Any], bool] = lambda _: True, **more: Any
) -> Any:
    """Make a dataclass's field that is an option; by default every value fits. more: further attributes of `Option`."""
    return field(default=default, metadata={"option": Option(help, allowed, fits, **more)})


def switch(default: bool, help: str | None = None, **more: Any) -> Any:
    """Make an option that is on or off."""
    return option(default, help, "True or False", lambda value: isinstance(value, bool), **more)


def one_of(values: Sequence[Any], default: Any, help: str) -> Any:
    """Make an option with these values, to which 1 belongs without True."""
    allowed = f"one of {', '.join(map(str, values))}"
    return option(default, help, allowed, lambda v: v in values and not isinstance(v, bool), kind=type(values[0]))


def path(help: str, allowed: str = "a path", **more: Any) -> Any:
    """Make an option that is a path, or None."""
    return option(None, help, allowed, lambda v: isinstance(v, str) and v != "" and "\0" not in v, **more)


def whole_number(least: int, most: int, allowed: str, help: str, **more: Any) -> Any:
    """Make an option that is an integer from `least` to `most`, or None."""
    return option(None, help, allowed, lambda value: type(value) is int and least <= value <= most, **more)


def options_of(kind: type) -> dict[str, tuple[Any, Option]]:
    """List a dataclass's options by name, in its order, each with its default."""
    return {each.name: (each.default, each.metadata["option"]) for each in fields(kind) if each.metadata}


def check_options(values: Any) -> None:
    """Raise `ArgumentError` for the first option of a dataclass whose value does not fit; a default of None does."""
    for name, (default, known) in options_of(type(values)).items():
        value = getattr(values, name)
        if (value is not None or default is not None) and not known.fits(value):
            raise ArgumentError.of(name, known.allowed, value)
