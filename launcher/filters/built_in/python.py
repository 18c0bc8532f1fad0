"""A filter that is a class in Python: `python:MODULE:CLASS[,KEY=VALUE]…`, made as `CLASS(KEY="VALUE", …)`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import cast

from engine.errors import ArgumentError
from launcher.filters.protocol import Filter

OPTIONS = None
_VALUE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def check_options(value: str, options: Mapping[str, str]) -> str:
    """Raise `ArgumentError` for a value that names no class. Its module is imported in the filter's process alone."""
    if not _VALUE.fullmatch(value):
        told = ArgumentError.of("its value", "MODULE:CLASS", value).message
        raise ArgumentError(f"filter python: {told}", parameter="filters")
    return value


def make(value: str, options: Mapping[str, str]) -> Filter:
    """Make an object of the class. Raises whatever its module and the class do."""
    module, _, name = value.partition(":")
    return cast("Filter", getattr(importlib.import_module(module), name)(**options))
