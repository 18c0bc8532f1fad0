"""Makes a filter, in its process."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from launcher.filters.exchange import METHODS, Method, check_scores
from launcher.filters.protocol import Filter
from launcher.filters.spec import call_timeout_s
from launcher.messages.configs import FilterSpec


def load(spec: FilterSpec) -> Filter:
    """Import what a filter needs, make it, and tell it how long it may take. Raises whatever that does."""
    module = importlib.import_module(f"launcher.filters.built_in.{spec.name}")
    made = cast("Filter", module.make(spec.value, spec.options))
    if hasattr(made, "patience_s"):
        made.patience_s = call_timeout_s(spec)
    return made


def methods_of(made: Filter, spec: FilterSpec) -> tuple[Method, ...]:
    """List the methods that are to be called. Raises `ValueError` if there are none."""
    has = [method for method in METHODS if callable(getattr(made, method, None))]
    if not has:
        raise ValueError(f"{type(made).__name__} has none of the methods {', '.join(METHODS)}")
    methods = [method for method in has if spec.only is None or (method == "check_prompts") == (spec.only == "prompts")]
    if not methods:
        raise ValueError(f"only={spec.only} leaves nothing of what it does: it has {', '.join(has)}")
    return tuple(methods)


def thresholds_of(made: Filter) -> dict[str, float] | None:
    """Return the thresholds that a filter has itself, None where it has none. Raises `ValueError`."""
    thresholds: Mapping[str, float] | None = getattr(made, "thresholds", None)
    return None if thresholds is None else check_scores(thresholds)
