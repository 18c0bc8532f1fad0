"""What `--filter` may be given, and what it comes to."""

from __future__ import annotations

import msgspec
import pytest

from engine.errors import ArgumentError
from launcher.filters.spec import EVERY, NEVER, read_spec, read_specs, thresholds_of
from launcher.messages.configs import FilterSpec
from launcher.messages.encoding import encode


def test_options_of_all_filters_are_told_from_a_filters_own() -> None:
    spec = read_spec(
        "python:checks.nude:Nudity,path=/a,b:c,block=nude:0.8,block=sexual/minors:0.1,blur=0.5,low-block=nude:never,"
        "name=mine,workers=2,timeout=2.5,batch=4,only=images,width=7"
    )
    assert spec == FilterSpec(
        name="python",
        label="mine",
        value="checks.nude:Nudity",
        options={"path": "/a,b:c", "width": "7"},
        thresholds={
            "auto": {"block": {"nude": 0.8, "sexual/minors": 0.1}, "blur": {EVERY: 0.5}},
            "low": {"block": {"nude": NEVER}},
        },
        workers=2,
        timeout_s=2.5,
        batch=4,
        only="images",
    )
    assert thresholds_of(spec, "low") == {"block": {"nude": NEVER}}
    assert msgspec.msgpack.decode(encode(spec), type=FilterSpec) == spec


def test_without_a_low_set_the_only_set_holds_for_both() -> None:
    spec = read_spec("python:a:B,log=0.2")
    assert thresholds_of(spec, "low") == thresholds_of(spec, "auto") == {"log": {EVERY: 0.2}}


def test_filters_of_one_kind_get_names_of_their_own() -> None:
    specs = read_specs(["python:a:B", "python:a:C", "python:a:D,name=x", "python:a:E"])
    assert [spec.label for spec in specs] == ["python", "python-2", "x", "python-3"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "filters must be each NAME"),
        ("pyhton:a:B", "filters must be NAME[:VALUE][,KEY=VALUE]… with a NAME of words, classifier, moderation, chat, "
         "python, got 'pyhton:a:B'; did you mean python?"),
        ("python:a", "filter python: its value must be MODULE:CLASS, got 'a'"),
        ("python:a:B,block=nude:1.5", "filter python: block= must be SCORE or CATEGORY:SCORE, with a score above 0"),
        ("python:a:B,block=nan", "block= must be"),
        ("python:a:B,block=", "block= must be"),
        ("python:a:B,block=n:0.5,block=n:0.6", "filter python: block= is given twice for 'n'"),
        ("python:a:B,workers=0", "filter python: workers= must be a whole number from 1 to 16, got '0'"),
        ("python:a:B,timeout=inf", "filter python: timeout= must be seconds from 0.1 to 600.0, got 'inf'"),
        ("python:a:B,timeout=1,timeout=2", "filter python: timeout= is given twice"),
        ("python:a:B,only=videos", "only= must be prompts or images, got 'videos'"),
        ("python:a:B,name=a b", "name= must be up to 64 letters"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_said_with_what_is(text: str, sentence: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        read_spec(text)
    assert sentence in raised.value.message
    assert raised.value.parameter == "filters"


def test_two_filters_may_not_be_called_the_same() -> None:
    with pytest.raises(ArgumentError, match="two filters are called 'x'"):
        read_specs(["python:a:B,name=x", "python:a:C,name=x"])
    with pytest.raises(ArgumentError, match="filters must be at most 16, got 17"):
        read_specs(["python:a:B"] * 17)
