"""Filters that ask a URL, in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine.errors import FilterUnavailableError, LaunchError, ModerationBlockedError
from launcher.awake import AwakeLoop
from launcher.filters.gate import Gate
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


def test_a_variable_without_a_key_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(gate: Gate) -> None:
        raise AssertionError

    monkeypatch.delenv("GUARD_KEY", raising=False)
    told = "^content filter moderation cannot be started: filter moderation: the environment variable GUARD_KEY, which"
    with pytest.raises(LaunchError, match=told):
        with_gate(["moderation:https://example.com,key-env=GUARD_KEY"], use)
