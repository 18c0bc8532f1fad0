"""Clients that hang up, whose requests are cancelled; and a server that ends, which says so."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request

from launcher.http.guard import Guard
from tests.launcher.fake_ranks import DEADLINE_S, Fakes, fake_engine, run
from tests.launcher.http.http_requests import JSON, NOWHERE, error_of, head
from tests.launcher.http_servers import PATH, PROMPT, events_of, http_server, http_server_without_engine


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_cancels_the_request(run_folder: Path, stream: bool) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            body = json.dumps({"prompt": PROMPT, "steps": 5, "stream": stream, "progress": stream}).encode()
            fakes.ranks[0].hold = True
            async with asyncio.timeout(DEADLINE_S):
                address = client.base_url
                reader, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(head(address, b"Content-Length: %d\r\n" % len(body)) + body)
                await until_running(fakes, 1)
                if stream:
                    assert b" 200 " in await reader.readline()
                writer.close()
                await until_running(fakes, 0)

    run(test())


def test_who_hangs_up_and_repeats_under_the_same_id_never_gets_the_end_of_the_first(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            body = json.dumps({"prompt": PROMPT, "steps": 2}).encode()
            address = client.base_url
            for _ in range(20):
                before = len(fakes.ranks[0].steps)
                _, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(head(address, b"X-Request-ID: same\r\nContent-Length: %d\r\n" % len(body)) + body)
                await fakes.ranks[0].has_steps(before + 1)
                writer.close()
                again = await client.post(PATH, content=body, headers=JSON | {"X-Request-ID": "same"})
                assert again.status_code == 200, again.text
            async with asyncio.timeout(DEADLINE_S):
                await until_running(fakes, 0)

    run(test())


def test_a_process_that_ends_answers_who_waits_for_images(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.http.app.FINISH_S", DEADLINE_S)

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncExitStack() as stack, asyncio.timeout(DEADLINE_S):
            fakes.ranks[0].hold = True
            async with http_server(fakes.address) as client:
                url = client.base_url
                other = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=DEADLINE_S))
                body = {"prompt": PROMPT, "steps": 2}
                waiting = asyncio.create_task(other.post(PATH, json=body))
                streams = [
                    await stack.enter_async_context(other.stream("POST", PATH, json=body | {"stream": True, **fields}))
                    for fields in ({}, {"progress": True})
                ]
                await until_running(fakes, 3)
            plain = await waiting
            assert plain.status_code == 503
            assert int(plain.headers["retry-after"]) >= 1
            assert error_of(plain)["code"] == "server_unavailable"
            for stream in streams:
                name, data = events_of((await stream.aread()).decode())[-1]
                assert (name, data["error"]["code"]) == ("error", "server_unavailable")

    run(test())


def test_a_process_that_ends_answers_whose_body_has_not_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.http.app.FINISH_S", 0.1)
    reading = asyncio.Event()
    read_body = Guard._read_body

    async def note(guard: Guard, request: Request) -> bytes:
        reading.set()
        return await read_body(guard, request)

    monkeypatch.setattr(Guard, "_read_body", note)

    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S):
            async with http_server_without_engine(NOWHERE) as client:
                url = client.base_url
                reader, writer = await asyncio.open_connection(url.host, url.port)
                writer.write(head(url, b"Content-Length: 9\r\n") + b"{")
                await reading.wait()
            half = await reader.readuntil(b"}}")
            assert half.startswith(b"HTTP/1.1 503 ")
            assert b'"code":"server_unavailable"' in half
            writer.close()

    run(test())


async def until_running(fakes: Fakes, count: int) -> None:
    """Wait until the front-end has `count` requests that have not ended."""
    client = await fakes.client()
    try:
        while True:
            status = await client.status()
            if status.waiting + status.running == count:
                return
            await asyncio.sleep(0.01)
    finally:
        await client.close()
