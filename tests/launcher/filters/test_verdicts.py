"""What scores come to, by thresholds of operator and filter."""

from __future__ import annotations

import pytest

from launcher.filters.spec import read_spec
from launcher.filters.verdicts import DEFAULT_THRESHOLDS, Finding, blocked_error, judge, strictest

OWN = {"nude": 0.8, "weapons": 0.9}


@pytest.mark.parametrize(
    ("options", "moderation", "kind", "scores", "expected"),
    [
        ("", "auto", "image", {"nude": 0.8}, "block"),
        ("", "auto", "image", {"nude": 0.79}, "allow"),
        ("", "auto", "image", {"plain": 1.0}, "allow"),
        (",block=nude:0.5", "auto", "image", {"nude": 0.5}, "block"),
        (",block=nude:0.95", "auto", "image", {"nude": 0.9}, "allow"),
        (",block=nude:0.95", "auto", "image", {"weapons": 0.9}, "block"),
        (",block=0.95", "auto", "image", {"weapons": 0.9}, "allow"),
        (",block=0.95,block=nude:0.2", "auto", "image", {"nude": 0.2}, "block"),
        (",blur=nude:0.5", "auto", "image", {"nude": 0.9}, "blur"),
        (",blur=nude:0.5", "auto", "preview", {"nude": 0.9}, "blur"),
        (",blur=nude:0.5", "auto", "prompt", {"nude": 0.9}, "block"),
        (",blur=nude:0.5", "auto", "upload", {"nude": 0.9}, "block"),
        (",blur=nude:0.5,block=nude:0.9", "auto", "image", {"nude": 0.9}, "block"),
        (",log=nude:0.1", "auto", "image", {"nude": 0.3}, "log"),
        (",log=nude:0.1", "auto", "image", {"nude": 0.8}, "block"),
        (",block=nude:never,log=0.1", "auto", "image", {"nude": 1.0}, "log"),
        (",block=nude:0.1,low-block=nude:0.9", "low", "image", {"nude": 0.8}, "allow"),
        (",block=nude:0.1,low-block=nude:0.9", "auto", "image", {"nude": 0.8}, "block"),
        (",block=nude:0.1", "low", "image", {"nude": 0.1}, "block"),
    ],
)
def test_a_score_from_a_threshold_on_has_its_action(
    options: str, moderation: str, kind: str, scores: dict[str, float], expected: str
) -> None:
    spec = read_spec(f"python:a:B{options}")
    assert strictest(judge(spec, OWN, kind, scores, moderation)) == expected


def test_a_filter_without_thresholds_blocks_from_one_half() -> None:
    spec = read_spec("python:a:B")
    assert strictest(judge(spec, DEFAULT_THRESHOLDS, "image", {"x": 0.5}, "auto")) == "block"
    assert judge(spec, DEFAULT_THRESHOLDS, "image", {"x": 0.49}, "auto") == []


def test_findings_of_all_are_kept_the_strictest_first() -> None:
    spec = read_spec("python:a:B,name=mine,log=0.1")
    found = judge(spec, OWN, "image", {"weapons": 0.2, "nude": 0.9, "plain": 0.05}, "auto")
    assert found == [
        Finding("mine", "image", "block", "nude", 0.9),
        Finding("mine", "image", "log", "weapons", 0.2),
    ]


@pytest.mark.parametrize(
    ("kind", "parameter", "message"),
    [
        ("prompt", "prompt", "the prompt was blocked by the content filter f (nude)"),
        ("prompt", "negative_prompt", "the negative prompt was blocked by the content filter f (nude)"),
        ("upload", "image", "the picture that was sent was blocked by the content filter f (nude)"),
        ("image", None, "the image was blocked by the content filter f (nude)"),
    ],
)
def test_the_error_names_filter_and_category(kind: str, parameter: str | None, message: str) -> None:
    error = blocked_error([Finding("f", kind, "log", "z", 1.0), Finding("f", kind, "block", "nude", 1.0)], parameter)
    assert (error.message, error.parameter, error.category) == (message, parameter, "nude")
    assert error.code == "moderation_blocked"
