"""Questions and answers are those of OpenAI's own client."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types import Moderation

from launcher.filters.built_in import chat, moderation
from launcher.filters.protocol import Picture, Prompt
from tests.launcher.filters.urls.stand_in import Reply, StandIn
from tests.launcher.processes import PATIENCE_S

PICTURE = Picture(16, 16, bytes(16 * 16 * 3), "image", "a cat")


@pytest.fixture
def client(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> openai.OpenAI:
    monkeypatch.setenv("GUARD_KEY", "sk-123")
    return openai.OpenAI(base_url=f"{stand_in.url}/v1", api_key="sk-123", max_retries=0)


def asked_alike(stand_in: StandIn) -> bool:
    """Whether the last two requests are the same."""
    alike = []
    for (path, headers), body in zip(stand_in.requests[-2:], stand_in.asked[-2:], strict=True):
        lower = {name.lower(): value for name, value in headers.items()}
        alike.append((path, lower["authorization"], lower["content-type"], body))
    return alike[0] == alike[1]


def flagging(category: str) -> dict[str, Any]:
    """A result with all categories that the client knows, of which one is flagged."""
    names = {
        kind: [field.alias or name for name, field in Moderation.model_fields[kind].annotation.model_fields.items()]
        for kind in ("categories", "category_scores", "category_applied_input_types")
    }
    values = {
        "categories": {name: name == category for name in names["categories"]},
        "category_scores": {name: 0.3 if name == category else 0.01 for name in names["category_scores"]},
        "category_applied_input_types": {name: ["text"] for name in names["category_applied_input_types"]},
    }
    return Moderation.model_validate({"flagged": True, **values}).model_dump(by_alias=True, mode="json")


def test_moderation_is_asked_for_as_openais_client_does(stand_in: StandIn, client: openai.OpenAI) -> None:
    stand_in.reply = lambda body: Reply({"id": "modr-1", "model": "m", "results": [flagging("sexual/minors")]})
    made = moderation.make(f"{stand_in.url}/v1", {"model": "omni-moderation-latest", "key-env": "GUARD_KEY"})
    made.patience_s = PATIENCE_S
    for scores in (made.check_prompts([Prompt("a cat")]), made.check_images([PICTURE])):
        assert scores[0]["sexual/minors"] == 0.5
        assert len(scores[0]) == 13
        client.moderations.create(**stand_in.asked[-1])
        assert asked_alike(stand_in)


def test_guard_models_are_asked_as_openais_client_does(stand_in: StandIn, client: openai.OpenAI) -> None:
    stand_in.reply = lambda body: Reply({"choices": [{"index": 0, "message": {"content": "unsafe\nS1"}}]})
    made = chat.make(f"{stand_in.url}/v1", {"model": "guard", "key-env": "GUARD_KEY", "images": "yes"})
    made.patience_s = PATIENCE_S
    assert isinstance(made, chat.ChatWithPictures)
    for scores in (made.check_prompts([Prompt("a cat")]), made.check_images([PICTURE])):
        assert scores == [{"S1": 1.0}]
        client.chat.completions.create(**stand_in.asked[-1])
        assert asked_alike(stand_in)
