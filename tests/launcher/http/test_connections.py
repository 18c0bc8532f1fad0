"""Connections that do not say what they want, and ones that do so again and again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import msgspec
import pytest

from engine.errors import ServerError
from launcher.client.async_client import AsyncClient
from launcher.http.answers.engine_link import EngineLink
from launcher.messages.client_messages import StatusReply
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run
from tests.launcher.http_servers import PATH, PROMPT, http_server_without_engine

NOWHERE = "ipc:///nonexistent/krea2"
HEAD_S = 0.5
LONG_HEAD_S = 2.0  # which one that is sent at once does not take, whoever wants the cores too
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def expect_heads_within(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Those of heads that begin to be waited for from now on."""
    monkeypatch.setattr("launcher.http.connections.HEAD_S", seconds)


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[httpx.URL, Callable[[], Awaitable[Connection]]]]:
    """A server's address, and what opens a connection to it."""
    async with http_server_without_engine(NOWHERE) as client, asyncio.timeout(DEADLINE_S):
        address = client.base_url
        yield address, lambda: asyncio.open_connection(address.host, address.port)


async def be_answered(opened: Connection) -> None:
    reader, writer = opened
    writer.write(REQUEST)
    assert b'{"status":"ok"}' in await reader.readuntil(b"}")


def test_a_head_that_does_not_arrive_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def expect_close(opened: Connection, start: bytes) -> None:
        reader, writer = opened

        async def trickle() -> None:
            writer.write(start)
            while start:
                await asyncio.sleep(HEAD_S / 10)
                writer.write(b"x")

        trickling = asyncio.create_task(trickle())
        try:
            assert await reader.read() == b""
        except ConnectionError:
            pass  # it was reset
        finally:
            trickling.cancel()
            await asyncio.gather(trickling, return_exceptions=True)
            writer.close()

    async def test() -> None:
        starts = (b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        expect_heads_within(monkeypatch, DEADLINE_S)
        async with connection() as (_, connect):
            opened = [await connect() for _ in starts]
            for each in opened * 2:
                await be_answered(each)
            expect_heads_within(monkeypatch, HEAD_S)
            opened += [await connect() for _ in starts]
            silent = expect_close(await connect(), b"")
            await asyncio.gather(silent, *map(expect_close, opened, starts * 2))

    run(test())


def test_a_connection_that_is_kept_alive_serves_for_longer_than_a_head_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        expect_heads_within(monkeypatch, LONG_HEAD_S)
        async with connection() as (_, connect):
            reader, writer = await connect()
            for _ in range(2):
                await be_answered((reader, writer))
            await asyncio.sleep(1.1 * LONG_HEAD_S)
            writer.write(REQUEST + REQUEST)
            for _ in range(2):
                assert b'{"status":"ok"}' in await reader.readuntil(b"}")
            writer.close()

    run(test())


def test_a_request_may_take_longer_than_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        expect_heads_within(monkeypatch, LONG_HEAD_S)
        async with connection() as (address, connect):
            reader, writer = await connect()
            head = f"POST {PATH} HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/json\r\n"
            writer.write(head.encode() + b"Content-Length: 9\r\n\r\nnot")
            await asyncio.sleep(1.1 * LONG_HEAD_S)
            writer.write(b" json!")
            assert b" 400 " in await reader.readline()
            writer.close()

    run(test())


def test_connections_beyond_those_there_are_files_for_are_refused_and_the_others_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expect_heads_within(monkeypatch, DEADLINE_S)
    monkeypatch.setattr("launcher.http.connections.room_for_connections", lambda *, reserve: 3)

    async def test() -> None:
        async with connection() as (_, connect):
            held = [await connect() for _ in range(3)]
            reader, _ = await connect()
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            for reader, writer in held:
                writer.write(REQUEST)
                assert b" 200 " in await reader.readline()
            held.pop()[1].close()
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    reader, writer = await connect()
                    writer.write(REQUEST)
                    with suppress(ConnectionResetError):
                        if b" 200 " in await reader.readline():
                            break

    run(test())


def test_who_comes_as_soon_as_the_ranks_have_loaded_is_served(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before this process knows of it: it does not connect at first, and then asks a moment too early."""
    connect, ask, serve = AsyncClient.connect, AsyncClient.status, EngineLink.loaded
    came = asyncio.Event()
    failures = [ServerError("nobody listens yet")]
    replies: list[StatusReply] = []

    async def note(link: EngineLink) -> AsyncClient:
        came.set()
        return await serve(link)

    async def connect_late(client: AsyncClient) -> None:
        if failures:
            raise failures.pop()
        monkeypatch.setattr("launcher.http.answers.engine_link._POLL_S", DEADLINE_S)
        await came.wait()
        await connect(client)

    async def ask_too_early(client: AsyncClient) -> StatusReply:
        replies.append(await ask(client))
        return replies[-1] if len(replies) > 1 else msgspec.structs.replace(replies[-1], device=None)

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            while (await client.status()).device is None:
                await asyncio.sleep(0.01)
            monkeypatch.setattr(EngineLink, "loaded", note)
            monkeypatch.setattr(AsyncClient, "connect", connect_late)
            monkeypatch.setattr(AsyncClient, "status", ask_too_early)
            monkeypatch.setattr("launcher.http.answers.engine_link._CONNECT_S", DEADLINE_S)
            async with http_server_without_engine(fakes.address) as http:
                answer = await http.post(PATH, json={"prompt": PROMPT, "steps": 1})
            assert answer.status_code == 200, answer.text
            assert len(replies) == 2

    run(test())


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"hello\r\n\r\n", "this is not HTTP as the server reads it: illegal request line"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "this is not HTTP as the server reads it: "),  # TLS
        (b"GET / HTTP/1.1\r\n\r\n", "this is not HTTP as the server reads it: Missing mandatory Host: header"),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
            "this is not HTTP as the server reads it: bad Content-Length",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: %b\r\n\r\n" % (b"x" * 100_000),
            "the line and headers of a request must be at most 32 KiB",
        ),
    ],
)
def test_what_is_not_http_is_answered_as_every_error_is(sent: bytes, told: str) -> None:
    async def test() -> None:
        async with connection() as (_, connect):
            reader, writer = await connect()
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            fields = dict(line.split(": ") for line in head.decode().lower().splitlines()[1:-1])
            assert (fields["content-type"], fields["connection"]) == ("application/json", "close")
            body = await reader.readexactly(int(fields["content-length"]))
            error = json.loads(body)["error"]
            assert error["message"].startswith(told)
            assert (error["code"], error["request_id"]) == ("invalid_parameter", fields["x-request-id"])
            writer.close()

    run(test())
