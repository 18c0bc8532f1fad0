"""Names of a form's fields with brackets become lists and objects."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import ArgumentError
from launcher.http.uploads.fields import Part, nest

XY = {"x": "1", "y": "2"}


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ([("a", "1"), ("b", "2")], {"a": "1", "b": "2"}),
        ([("a", "1"), ("a", "2")], {"a": ["1", "2"]}),
        ([("a[]", "1")], {"a": ["1"]}),
        ([("a[0]", "1"), ("a[1]", "2")], {"a": ["1", "2"]}),
        ([("a[x]", "1"), ("a[y]", "2")], {"a": {"x": "1", "y": "2"}}),
        ([("a[][x]", "1"), ("a[][y]", "2"), ("a[][x]", "3"), ("a[][y]", "4")], {"a": [XY, {"x": "3", "y": "4"}]}),
        ([("a[][x]", "1"), ("a[][x]", "3"), ("a[][y]", "2"), ("a[][y]", "4")], {"a": [XY, {"x": "3", "y": "4"}]}),
        ([("loras", '[{"name": "a"}]')], {"loras": [{"name": "a"}]}),
        ([("loras", "ink")], {"loras": ["ink"]}),
        ([("loras[]", "ink"), ("loras[]", "oil")], {"loras": ["ink", "oil"]}),
        ([("outpaint", '{"left": 8}')], {"outpaint": {"left": 8}}),
        ([("outpaint", "left=8")], {"outpaint": "left=8"}),
        ([("prompt", "[not JSON")], {"prompt": "[not JSON"}),
    ],
)
def test_what_names_mean(sent: list[tuple[str, str]], told: dict[str, Any]) -> None:
    assert nest([Part(*each) for each in sent]) == told


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a[x]", "a[x]"], "'a[x]' is there twice"),
        (["a", "a[x]"], "'a[x]' is there twice, or beside another of its name"),
        (["a[x]", "a[]"], "'a[]' stands beside fields of an object of its name"),
        (["a[][x]", "a[][y]", "a[][x]"], "'a' does not say which fields belong together: give it as JSON"),
        (["a", "a[][y]"], "'a' does not say which fields belong together"),
        (["a[b][c]"], "'a[b][c]' is no name of a field"),
        (["a[][b][c]"], "'a[][b][c]' is no name of a field"),
        (["["], "'[' is no name of a field"),
        (["a" * 900], "'aaaaaaaaaaaaaaaaaaaa"),
    ],
)
def test_names_that_mean_nothing_together(names: list[str], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        nest([Part(name, "x") for name in names])
    assert caught.value.message.startswith(message)
    assert len(caught.value.message) < 200


def test_what_is_written_as_json_is_bounded() -> None:
    with pytest.raises(ArgumentError, match="loras is no JSON: at most 256 values are allowed"):
        nest([Part("loras", f"[{','.join(['1'] * 300)}]")])
