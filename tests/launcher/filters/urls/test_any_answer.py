"""Answers with a part that is missing or something else: they have scores, or are failures, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from launcher.filters.built_in.chat import POLICIES, Chat, LlamaGuard, ShieldGemma
from launcher.filters.built_in.moderation import Moderation
from launcher.filters.exchange import check_scores
from launcher.filters.protocol import Filter, Prompt, Unavailable
from launcher.filters.urls.asking import Service

WRONG: tuple[Any, ...] = (
    None, True, False, "", "safe", "No", "a" * 3000, [], [None], [[]], ["x"], {}, {"a": 1}, 0, 1, -1, 2.5, 10**400,
    -(10**400), 1e300, -1e300, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TOKENS = [{"token": token, "logprob": -0.7} for token in ("unsafe", "safe", "Yes", "No")]
LOGPROBS = {"content": [{"token": "unsafe", "logprob": -0.7, "top_logprobs": TOKENS}]}
RESULT = {"flagged": True, "categories": {"a": True, "b": False}, "category_scores": {"a": 0.7, "b": 0.1}}


class Answering:
    """A service that gives one answer to all."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def ask_all(self, questions: Sequence[Callable[[], object]]) -> list[Any]:
        return [self._answer for _ in questions]


def completion(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "logprobs": LOGPROBS}]}


def changed(value: Any) -> Iterator[Any]:
    """Copies of a JSON value, in each of which one part is another, or is not there."""
    yield from WRONG
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        for part in changed(value[key]):
            another = copy.copy(value)
            another[key] = part
            yield another
        another = copy.copy(value)
        del another[key]
        yield another


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda service: Moderation(service, None), {"results": [RESULT]}),
        (lambda service: Chat(service, {}, LlamaGuard()), completion("unsafe\nS1")),
        (lambda service: Chat(service, {}, ShieldGemma(POLICIES)), completion("Yes")),
    ],
    ids=["moderation", "llama-guard", "shieldgemma"],
)
def test_an_answer_has_scores_or_is_a_failure(make: Callable[[Service], Filter], answer: Any) -> None:
    def scores(answer: Any) -> float | None:
        try:
            (found,) = make(cast("Service", Answering(answer))).check_prompts([Prompt("x")])
        except Unavailable:
            return None
        return max(check_scores(found).values(), default=0.0)

    assert scores(answer) >= 0.5
    results = [scores(each) for each in changed(answer)]
    assert len(results) > 100
    assert results.count(None) > len(results) / 4
