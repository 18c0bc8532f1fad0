"""Which prompts a checkpoint says that it can draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo.captions import prompts
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.json_fields import JsonFields
from engine.config.model_config import ModelConfig
from engine.config.prompt_domain import PromptDomain, read_prompt_domain
from engine.errors import CheckpointError

INDEX = Path("model_index.json")
NOTE = "It draws cats."


def read(**values: Any) -> PromptDomain | None:
    return read_prompt_domain(JsonFields(INDEX, values))


def test_words_are_known_in_any_case_and_between_any_signs() -> None:
    domain = read(prompt_words=["a", "big", "cat", "cats", "é"], prompt_note=NOTE)
    assert domain == PromptDomain(frozenset({"a", "big", "cat", "cats", "é"}), NOTE)
    for prompt in ("a big cat", "A Big CAT.", " cats\n", "", "!?", "cat_cat", "É"):
        assert domain.warning(prompt) is None, prompt
    warning = domain.warning("a Small cat, a small DOG; cat's 2")
    assert warning == f'the model does not know "small", "dog", "s", "2". {NOTE}'


def test_the_warning_names_the_first_words_that_are_unknown_and_not_all_of_a_long_one() -> None:
    domain = PromptDomain(frozenset({"cat"}), NOTE)
    assert domain.warning("cat dog cat fox dog") == 'the model does not know "dog", "fox". It draws cats.'
    assert domain.warning("1 2 3 4 5 6") == 'the model does not know "1", "2", "3", "4", "5" and more. It draws cats.'
    assert domain.warning("x" * 16384) == f'the model does not know "{"x" * 40}". It draws cats.'


def test_without_words_there_is_no_domain() -> None:
    assert read() is read(prompt_words=None, prompt_note=None) is None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"prompt_words": ["cat"]}, "prompt_note: is missing"),
        ({"prompt_note": NOTE}, "prompt_words: is missing"),
        ({"prompt_words": "cat", "prompt_note": NOTE}, "prompt_words: .* expected a list"),
        ({"prompt_words": [], "prompt_note": NOTE}, "prompt_words: .* expected a list of 1 to 4096 texts"),
        ({"prompt_words": ["cat"] * 4097, "prompt_note": NOTE}, "prompt_words: .* expected a list of 1 to 4096 texts"),
        ({"prompt_words": ["cat", 1], "prompt_note": NOTE}, "prompt_words: .* expected a list of 1 to 4096 texts"),
        ({"prompt_words": ["cat", "Dog"], "prompt_note": NOTE}, 'prompt_words: .* lower case, found "Dog"'),
        ({"prompt_words": ["big cat"], "prompt_note": NOTE}, 'prompt_words: .* lower case, found "big cat"'),
        ({"prompt_words": ["cat"], "prompt_note": ""}, "prompt_note: .* expected a text of 1 to 1024 printable"),
        ({"prompt_words": ["cat"], "prompt_note": "\x1b[2J"}, "prompt_note: .* printable"),
        ({"prompt_words": ["cat"], "prompt_note": "cats\ndogs"}, "prompt_note: .* printable"),
        ({"prompt_words": ["cat"], "prompt_note": "n" * 1025}, "prompt_note: .* expected a text of 1 to 1024"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=f"^model_index.json: {problem}"):
        read(**values)


def test_the_demo_knows_the_words_of_its_grammar_and_says_so_to_others() -> None:
    domain = ModelConfig.from_folder(DEMO_CHECKPOINT).prompt_domain
    assert domain is not None
    first_weights_know = [prompt for prompt in prompts(0, 500, kept_out=True) if prompt.count == 1]
    assert all(domain.warning(prompt.text()) is None for prompt in first_weights_know)
    assert domain.warning("a fox in the snow") == f'the model does not know "fox", "in", "snow". {domain.note}'
