"""The grammar of prompts: writing and reading them are each other's inverse, and training never sees those kept out."""

from __future__ import annotations

import random

import pytest

from demo.captions import held_out, parse, prompts, random_prompt
from demo.tokenizer import sentence


def test_reading_is_the_inverse_of_writing() -> None:
    source = random.Random(0)
    for _ in range(2000):
        prompt = random_prompt(source)
        text = prompt.text()
        assert parse(text) == parse(sentence(text)) == parse(f" {text.upper()} ") == prompt


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a fox in the snow",
        "a red circle",
        "red circle on a blue background",
        "a large red circle above a green star on a white background",
        "a red circle at the left above a green star on a white background",
        "two large red circles on a white background",
        "four red circles on a white background",
        "a red circle on a blue background and a fox",
    ],
)
def test_other_texts_are_no_prompts(text: str) -> None:
    assert parse(text) is None


def test_prompts_kept_out_and_trained_on_have_none_in_common() -> None:
    kept_out, trained = prompts(0, 300, kept_out=True), prompts(0, 2000, kept_out=False)
    assert len(set(kept_out)) == 300
    assert all(map(held_out, kept_out))
    assert not any(map(held_out, trained))
    assert prompts(0, 300, kept_out=True) == kept_out
