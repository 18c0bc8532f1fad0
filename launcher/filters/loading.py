"""Makes a filter, in its process."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import cast

from launcher.filters.exchange import METHODS, Method, check_scores
from launcher.filters.protocol import Filter
from launcher.filters.spec import EVERY, meant
from launcher.filters.verdicts import DEFAULT_THRESHOLDS
from launcher.messages.configs import FilterSpec

_MOST_LISTED = 50


def load(spec: FilterSpec) -> Filter:
    """Import what a filter needs and make it. Raises whatever that does, and `ValueError` for thresholds that do not
    fit its categories."""
    module = importlib.import_module(f"launcher.filters.built_in.{spec.name}")
    made = cast("Filter", module.make(spec.value, spec.options))
    _check_categories(made, spec)
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


def _check_categories(made: Filter, spec: FilterSpec) -> None:
    """Compare what a filter scores, if it says so, with what counts of it."""
    categories: Collection[str] | None = getattr(made, "categories", None)
    if categories is None:
        return
    given = {category for by_action in spec.thresholds.values() for scores in by_action.values() for category in scores}
    listed = ", ".join([*categories][:_MOST_LISTED]) + (", …" if len(categories) > _MOST_LISTED else "")
    for category in sorted(given - {EVERY, *categories}):
        raise ValueError(f"it has no category {category!r}, but {listed or 'none'}{meant(category, categories)}")
    own = thresholds_of(made)
    if not {EVERY, *categories} & (given | {*(DEFAULT_THRESHOLDS if own is None else own)}):
        said = f"none of its categories ({listed}) is known to be harmful" if listed else "it finds nothing harmful"
        raise ValueError(f"{said}: say what is to be blocked, and from which score, as block=CATEGORY:0.5")
