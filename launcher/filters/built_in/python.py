"""A filter that is a class in Python: `python:MODULE:CLASS[,KEY=VALUE]…`, made as `CLASS(KEY="VALUE", …)`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import cast

from launcher.filters.protocol import Filter
from launcher.filters.spec import meant, must, wrong

OPTIONS = None
_NAME = "python"
_VALUE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def check_options(value: str, options: Mapping[str, str]) -> str:
    """Raise `ArgumentError` for a value that names no class, and options that are no names of arguments. Its module is
    imported in the filter's process alone."""
    if not _VALUE.fullmatch(value):
        raise must(_NAME, "its value", "MODULE:CLASS", value)
    for key in options:
        if not key.isidentifier():
            raise wrong(_NAME, f"{key}= is given to {value}, whose arguments have names with _ in place of -")
    return value


def make(value: str, options: Mapping[str, str]) -> Filter:
    """Make an object of the class. Raises `ArgumentError` if there is none, and what its module and the class do."""
    name, _, kind = value.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # what the module itself imports is missing
        raise wrong(
            _NAME,
            f"there is no module {error.name}: it must be installed, or in a folder that the environment variable "
            "PYTHONPATH names",
        ) from None
    if not callable(made := getattr(module, kind, None)):
        raise wrong(_NAME, f"{name} has no class {kind}{meant(kind, vars(module).keys())}")
    return cast("Filter", made(**options))
