"""Tokens of prompts, the launcher's against those of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.verify import tokens
from bench.verify.subject.models import Model
from launcher.requests.tokenizer import Prompt, PromptTokenizer


def test_tokens_of_all_prompts_hold(model: Model) -> None:
    check = tokens.compare_tokens(model)
    assert check.holds, check.detail
    fed = tokens._Fed(model)
    assert len(fed.ids(tokens.PROMPTS["too long"])) == 34 + 507 + 5
    assert len(fed.ids("")) == 34 + 5


def test_a_wrong_token_is_named_with_its_prompt_and_place(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty(PromptTokenizer):
        def encode(self, prompt: str) -> Prompt:
            right = super().encode(prompt)
            if "🦊" not in prompt:
                return right
            return replace(right, ids=(*right.ids[:36], right.ids[36] + 1, *right.ids[37:]))

    monkeypatch.setattr(tokens, "PromptTokenizer", Faulty)
    check = tokens.compare_tokens(model)
    assert (check.holds, check.error) == (False, 1.0)
    assert check.detail.startswith("prompt 'emoji' ('a 🦊 in")
    assert "token 36 is" in check.detail


def test_a_prompt_that_is_cut_elsewhere_is_named(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.requests.tokenizer.MAX_PROMPT_TOKENS", 506)
    check = tokens.compare_tokens(model)
    assert not check.holds
    assert check.detail.startswith("prompt 'as long as there is room'")
