"""A filter that is a class in Python: `python:MODULE:CLASS[,KEY=VALUE]…`, made as `CLASS(KEY="VALUE", …)`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import cast

from engine.errors import ArgumentError
from launcher.filters.protocol import Filter

OPTIONS = None
_VALUE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def check_options(value: str, options: Mapping[str, str]) -> str:
    """Raise `ArgumentError` for a value that names no class, and options that are no names of arguments. Its module is
    imported in the filter's process alone."""
    if not _VALUE.fullmatch(value):
        raise _wrong(ArgumentError.of("its value", "MODULE:CLASS", value).message)
    for key in options:
        if not key.isidentifier():
            raise _wrong(f"{key}= is given to {value}, whose arguments have names with _ in place of -")
    return value


def make(value: str, options: Mapping[str, str]) -> Filter:
    """Make an object of the class. Raises `ArgumentError` if there is none, and what its module and the class do."""
    name, _, kind = value.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # what the module itself imports is missing
        raise _wrong(
            f"there is no module {error.name}: it must be installed, or in a folder that the environment variable "
            "PYTHONPATH names"
        ) from None
    if not callable(made := getattr(module, kind, None)):
        near = get_close_matches(kind, vars(module), n=1)
        raise _wrong(f"{name} has no class {kind}{f'; did you mean {near[0]}?' if near else ''}")
    return cast("Filter", made(**options))


def _wrong(told: str) -> ArgumentError:
    return ArgumentError(f"filter python: {told}", parameter="filters")
