"""Filters that ask a URL, in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine.errors import ArgumentError, FilterUnavailableError, LaunchError, ModerationBlockedError
from launcher.awake import AwakeLoop
from launcher.filters.gate import Gate
from launcher.filters.loading import load
from launcher.filters.protocol import Picture, Prompt
from launcher.filters.spec import read_specs
from tests.launcher.filters.urls.stand_in import Reply, StandIn


def with_gate(texts: list[str], use: Callable[[Gate], Awaitable[None]]) -> None:
    async def start_and_use() -> None:
        gate = Gate(read_specs(texts), fail_open=False)
        try:
            await gate.start()
            await use(gate)
        finally:
            gate.close()

    with asyncio.Runner(loop_factory=AwakeLoop) as runner:
        runner.run(start_and_use())


def test_a_service_is_asked_with_its_key_and_what_it_flags_is_blocked(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_KEY", "sk-123")

    def reply(body: Any) -> Reply:
        results = [
            {"flagged": "bad" in str(text), "categories": {"violence": "bad" in str(text)}} for text in body["input"]
        ]
        return Reply({}, 400) if "broken" in str(body) else Reply({"results": results})

    async def use(gate: Gate) -> None:
        assert (await gate.check_prompt(Prompt("a cat"))).action == "allow"
        with pytest.raises(ModerationBlockedError) as blocked:
            await gate.check_prompt(Prompt("a bad cat"))
        assert blocked.value.category == "violence"
        assert (await gate.check_image(Picture(8, 8, bytes(192), "image", "a cat"))).action == "allow"
        with pytest.raises(FilterUnavailableError):  # the process is kept
            await gate.check_prompt(Prompt("a broken cat"))
        assert (await gate.check_prompt(Prompt("a dog"))).action == "allow"

    stand_in.reply = reply
    with_gate([f"moderation:{stand_in.url}/v1,key-env=GUARD_KEY"], use)
    assert {headers["Authorization"] for _, headers in stand_in.requests} == {"Bearer sk-123"}


@pytest.mark.parametrize(
    ("filter_", "reply", "told"),
    [
        (
            "moderation:{}",
            Reply({"error": {"code": "invalid_api_key"}}, 401),
            r"answered 401 \(invalid_api_key\): look at",
        ),
        ("moderation:{}/v2", Reply(b"<html>"), "answered what is no JSON"),
        ("moderation:{}", Reply({"results": []}), "answered without a list of 1 results"),
        (
            "chat:{},model=guard",
            Reply({"error": {"code": "model_not_found"}}, 404),
            r"answered 404 \(model_not_found\)$",
        ),
        ("chat:{},model=guard", Reply({}, 307, {"Location": "/"}), "answered 307, which is not followed"),
        (
            "chat:{},model=g",
            Reply({"choices": [{"message": {"content": "No"}}]}),
            "neither safe nor unsafe: look at style=",
        ),
    ],
)
def test_a_service_that_is_another_one_than_the_options_say_ends_the_start(
    stand_in: StandIn, filter_: str, reply: Reply, told: str
) -> None:
    stand_in.reply = lambda body: reply
    spec = read_specs([filter_.format(stand_in.url)])[0]
    with pytest.raises(ArgumentError, match=f"^filter {spec.name}: .*{told}"):
        load(spec)


@pytest.mark.parametrize("reply", [Reply({}, 400), Reply({}, 503, {"Retry-After": "999"}), Reply({}, length=2**30)])
def test_a_service_that_does_not_answer_at_the_start_may_later(
    stand_in: StandIn, capfd: pytest.CaptureFixture[str], reply: Reply
) -> None:
    stand_in.reply = lambda body: reply
    load(read_specs([f"moderation:{stand_in.url}"])[0])
    assert "it is asked again for each check" in capfd.readouterr().err


def test_a_variable_without_a_key_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(gate: Gate) -> None:
        raise AssertionError

    monkeypatch.delenv("GUARD_KEY", raising=False)
    told = "^content filter moderation cannot be started: the environment variable GUARD_KEY, which"
    with pytest.raises(LaunchError, match=told):
        with_gate(["moderation:https://example.com,key-env=GUARD_KEY"], use)
