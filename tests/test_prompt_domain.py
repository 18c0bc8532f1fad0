"""Which prompts a checkpoint says that it can draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo.captions import prompts
from engine.config import DEMO_CHECKPOINT, ModelConfig
from engine.errors import CheckpointError
from engine.json_fields import JsonFields
from engine.prompt_domain import PromptDomain, read_prompt_domain

INDEX = Path("model_index.json")
NOTE = "It draws cats."


def read(**values: Any) -> PromptDomain | None:
    return read_prompt_domain(JsonFields(INDEX, values))


def test_a_pattern_matches_whole_prompts_in_any_case() -> None:
    domain = read(prompt_pattern="a (?P<size>big|small) cat|cats?", prompt_note=NOTE)
    assert domain == PromptDomain("a (?P<size>big|small) cat|cats?", NOTE)
    for prompt in ("a big cat", "A Small CAT", "cats", " cat\n"):
        assert domain.includes(prompt), prompt
    for prompt in ("", "a big", "a big cat!", "two cats", "a big cat\ncats", "a  big cat", "é"):
        assert not domain.includes(prompt), prompt


def test_without_a_pattern_there_is_no_domain() -> None:
    assert read() is read(prompt_pattern=None, prompt_note=None) is None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"prompt_pattern": "cat"}, "prompt_note: is missing"),
        ({"prompt_note": NOTE}, "prompt_pattern: is missing"),
        ({"prompt_pattern": "(cat", "prompt_note": NOTE}, r"prompt_pattern: .* \(missing \): \(cat\), found \"\(cat\""),
        ({"prompt_pattern": r"(c)\1", "prompt_note": NOTE}, r"prompt_pattern: .* RE2 takes \(invalid escape sequence"),
        ({"prompt_pattern": "(?=c)at", "prompt_note": NOTE}, r"prompt_pattern: .* RE2 takes \(invalid perl operator"),
        ({"prompt_pattern": "(?:.?){900}", "prompt_note": NOTE}, r"prompt_pattern: .* RE2 takes \(pattern too large"),
        ({"prompt_pattern": "c" * 4097, "prompt_note": NOTE}, "prompt_pattern: .* a text of 1 to 4096 printable"),
        ({"prompt_pattern": "", "prompt_note": NOTE}, "prompt_pattern: .* expected a text"),
        ({"prompt_pattern": ["cat"], "prompt_note": NOTE}, "prompt_pattern: .* expected a text"),
        ({"prompt_pattern": "\ud800", "prompt_note": NOTE}, "prompt_pattern: .* printable"),
        ({"prompt_pattern": "cat", "prompt_note": ""}, "prompt_note: .* expected a text of 1 to 1024 printable"),
        ({"prompt_pattern": "cat", "prompt_note": "\x1b[2J"}, "prompt_note: .* printable"),
        ({"prompt_pattern": "cat", "prompt_note": "cats\ndogs"}, "prompt_note: .* printable"),
        ({"prompt_pattern": "cat", "prompt_note": "n" * 1025}, "prompt_note: .* expected a text of 1 to 1024"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=f"^model_index.json: {problem}"):
        read(**values)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("pattern", "prompt"),
    [
        ("(?:a+)+b", "a" * 16384),
        ("(?:a?){500}a{500}b", "a" * 16384),
        ("(?:a|aa)*b", "a" * 16384),
        ("(?:a*b*){1000}c", "ab" * 8192),
        ("(?:a|b)*a(?:a|b){800}", "ab" * 8191 + "bb"),
        (r"(?:\w+\W?){30}!", "ab " * 5461),
        ("|".join(f".*{letter}.*{letter}.*!" for letter in "abcdefgh"), "abcdefgh" * 2048),
    ],
)
def test_no_pattern_takes_long_over_any_prompt(pattern: str, prompt: str) -> None:
    domain = read(prompt_pattern=pattern, prompt_note=NOTE)
    assert domain is not None
    assert not domain.includes(prompt)


def test_the_demo_draws_what_the_grammar_makes_and_says_so_to_others() -> None:
    domain = ModelConfig.from_folder(DEMO_CHECKPOINT).prompt_domain
    assert domain is not None
    first_weights_know = [prompt for prompt in prompts(0, 500, kept_out=True) if prompt.count == 1]
    assert all(domain.includes(prompt.text()) for prompt in first_weights_know)
    for prompt in ("a fox in the snow", "a red circle", "a red fox on a blue background", "four stars"):
        assert not domain.includes(prompt)
