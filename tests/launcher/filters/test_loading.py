"""What a filter says of itself as it is loaded, against what the operator says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from launcher.filters.loading import load
from launcher.filters.protocol import Prompt, Scores
from launcher.filters.spec import read_spec


class Colours:
    """Scores three categories, of which one blocks."""

    categories = ("red", "green", "infrared")
    thresholds: Mapping[str, float] = {"red": 0.5}

    def check_prompts(self, prompts: Sequence[Prompt]) -> Sequence[Scores]:
        return [{} for _ in prompts]


class Harmless(Colours):
    """Blocks nothing unless it is told to."""

    thresholds: Mapping[str, float] = {}


class Whatever(Colours):
    """Does not say what it scores."""

    categories = None
    thresholds: Mapping[str, float] = {}


def _load(kind: type, options: str) -> None:
    load(read_spec(f"python:{__name__}:{kind.__name__}{options}"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Colours, ""),
        (Colours, ",block=green:0.2,low-blur=infrared:never"),
        (Harmless, ",block=0.5"),
        (Harmless, ",log=red:0.5"),
        (Harmless, ",low-block=red:0.5"),
        (Harmless, ",block=never"),
        (Whatever, ",block=purple:0.5"),
        (Whatever, ""),
    ],
)
def test_thresholds_of_known_categories_are_taken(kind: type, options: str) -> None:
    _load(kind, options)


@pytest.mark.parametrize("key", ["block", "low-blur", "log"])
def test_a_threshold_for_a_category_that_a_filter_never_scores_is_refused(key: str) -> None:
    told = r"it has no category 'infrarot', but red, green, infrared; did you mean infrared\?"
    with pytest.raises(ValueError, match=told):
        _load(Colours, f",block=red:0.5,{key}=infrarot:0.5")


def test_a_filter_of_which_nothing_counts_is_refused() -> None:
    told = r"none of its categories \(red, green, infrared\) is known to be harmful: say what is to be blocked"
    with pytest.raises(ValueError, match=told):
        _load(Harmless, "")
