"""Reading JSON of others: the same as `json.loads` within the limits, and nothing beyond them."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.bounded_json import JsonLimits, read_json

GENEROUS = JsonLimits(values=10_000, depth=100, key=10_000, string=10_000)
texts = st.text(st.characters() | st.sampled_from('"\\\n\t\x00/uF'), max_size=300)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=30)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types, NaN being itself and 0.0 not -0.0."""
    return repr(one) == repr(other)


@given(values, st.sampled_from((None, 1, "\t")), st.booleans(), st.sampled_from(("utf-8", "utf-16", "utf-32", None)))
def test_what_is_within_the_limits_is_read_as_json_reads_it(
    value: Any, indent: int | str | None, ascii_only: bool, encoding: str | None
) -> None:
    text = f" \n{json.dumps(value, indent=indent, ensure_ascii=ascii_only)}\r\n"
    if encoding is not None:
        text = text.encode(encoding, "replace").decode(encoding)  # surrogates are no text
    written = text if encoding is None else text.encode(encoding)
    assert same(read_json(written, GENEROUS), json.loads(written))


@given(st.text(st.sampled_from('[]{},:"\\ \n\x000123456789.eE+-aflnrstuINy'), max_size=25) | texts)
def test_what_is_no_json_is_refused_as_json_does(text: str) -> None:
    try:
        expected = json.loads(text, object_pairs_hook=_without_duplicates)
    except ValueError:
        with pytest.raises(json.JSONDecodeError):
            read_json(text, GENEROUS)
    else:
        assert same(read_json(text, GENEROUS), expected)


@given(values)
def test_each_limit_is_the_most_that_is_read(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    held = JsonLimits(*_measure(value))
    assert same(read_json(text, held), json.loads(text))
    for name, most in held._asdict().items():
        if most > (1 if name == "values" else 0):
            with pytest.raises(json.JSONDecodeError, match=f"at most {most - 1} .*allowed"):
                read_json(text, held._replace(**{name: most - 1}))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "b": 2, "\\u0061": 3}', "the key 'a' is there twice"),
        ('{"a": [{"x": 1, "x": 1}]}', "the key 'x' is there twice"),
        ("[" + "9" * 4301 + "]", "numbers of at most 4300 characters"),
        ("[0." + "9" * 4300 + "]", "numbers of at most 4300 characters"),
        ('{"a" 1}', "Expecting ':'"),
        ("[1 2]", "Expecting ','"),
        ("[1,]", "Expecting value"),
        ("{1: 2}", "Expecting property name"),
        ("[1] []", "Extra data"),
        ('"' + "x" * 300, "Unterminated string"),
        ("", "Expecting value"),
        ("[\u0661]", "Expecting value"),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=problem):
        read_json(text, GENEROUS)


@pytest.mark.parametrize(
    "text",
    ["[" + "{}," * 400_000, "[" * 1_000_000, '["' + "\\n" * 500_000, "[" + "1," * 500_000, '{"' + "k" * 1_000_000],
)
def test_nothing_is_built_of_what_is_beyond_the_limits(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(json.JSONDecodeError, match="allowed"):
            read_json(text, JsonLimits(values=1000, depth=8, key=100, string=100_000))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_infinity_and_nan_are_read_as_json_reads_them() -> None:
    found = read_json("[NaN, Infinity, -Infinity]")
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _measure(value: Any) -> tuple[int, int, int, int]:
    """What `JsonLimits` counts, as `json.dumps` writes the value without ASCII escapes."""
    if isinstance(value, str):
        return 1, 0, 0, len(json.dumps(value, ensure_ascii=False)) - 2
    if not isinstance(value, dict | list):
        return 1, 0, 0, 0
    inner = [_measure(each) for each in (value.values() if isinstance(value, dict) else value)]
    keys = [len(json.dumps(key, ensure_ascii=False)) - 2 for key in value] if isinstance(value, dict) else []
    count, depth, key, string = (list(each) for each in zip(*inner, strict=True)) if inner else ([], [], [], [])
    return 1 + sum(count), 1 + max(depth, default=0), max([*keys, *key], default=0), max(string, default=0)
