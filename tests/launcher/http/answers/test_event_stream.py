"""Streams of events that are never silent for long, and that proxies pass on as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import openai
import pytest

import launcher.http
from launcher.http.answers import event_stream
from launcher.http.answers.event_stream import EventStream
from tests.launcher.fake_ranks import DEADLINE_S, Fakes, fake_engine, run
from tests.launcher.http_servers import PATH, PROMPT, http_server

BODY = {"prompt": PROMPT, "steps": 2, "stream": True}


async def until_none_runs(fakes: Fakes) -> None:
    client = await fakes.client()
    try:
        async with asyncio.timeout(DEADLINE_S):
            while (status := await client.status()).waiting + status.running:
                await asyncio.sleep(0.01)
    finally:
        await client.close()


def test_comments_come_while_nothing_else_does_and_hanging_up_then_cancels_at_once(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "SILENCE_S", 0.01)

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            fakes.ranks[0].hold = True
            async with client.stream("POST", PATH, json=BODY) as answer:
                assert answer.headers["x-accel-buffering"] == "no"
                assert answer.headers["cache-control"] == "no-store"
                lines = answer.aiter_lines()
                assert [await anext(lines) for _ in range(6)] == [": waiting", ""] * 3
                fakes.ranks[0].resume()
                async for line in lines:
                    if line not in (": waiting", ""):
                        break
                assert line == "event: image_generation.completed"
            fakes.ranks[0].hold = True
            async with client.stream("POST", PATH, json=BODY) as answer:
                assert await anext(answer.aiter_lines()) == ": waiting"
            await until_none_runs(fakes)

    run(test())


def test_openais_client_passes_over_comments(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "SILENCE_S", 0.001)

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as http:
            fakes.ranks[0].hold = True
            async with openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="any", max_retries=0) as client:
                stream = await client.images.generate(prompt=PROMPT, stream=True)
                async with http.stream("POST", PATH, json=BODY) as later:  # by whose comments the first has had some
                    lines = later.aiter_lines()
                    assert [await anext(lines) for _ in range(6)] == [": waiting", ""] * 3
                fakes.ranks[0].resume()
                assert [event.type async for event in stream] == ["image_generation.completed"]

    run(test())


def test_events_that_come_in_time_have_no_comments_between_them_and_are_all_sent() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        for number in range(3):
            await asyncio.sleep(0)
            yield b"%d" % number

    async def test() -> None:
        stream = EventStream(events(), {})
        assert [part async for part in stream.body_iterator] == [b"0", b"1", b"2"]

    run(test())


def test_who_stops_reading_ends_what_is_being_waited_for() -> None:
    ended = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            ended.append("it")

    async def test() -> None:
        source = events()
        stream = EventStream(source, {}).body_iterator
        assert await anext(stream) == b"first"  # type: ignore[arg-type]
        waiting = asyncio.ensure_future(anext(stream))  # type: ignore[arg-type]
        while not source.ag_running:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))
        async with aclosing(source):
            assert ended == ["it"]

    run(test())


def test_every_stream_is_one_of_these() -> None:
    files = [path for path in Path(launcher.http.__path__[0]).rglob("*.py") if "StreamingResponse" in path.read_text()]
    assert [path.name for path in files] == ["event_stream.py"]
