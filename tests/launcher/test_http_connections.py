"""Connections that do not say what they want, and those that do so again and again."""

from __future__ import annotations

import asyncio
import resource

import pytest

from launcher.http_connections import allow_many_connections
from tests.launcher.fake_ranks import DEADLINE_S, run
from tests.launcher.http_servers import PATH, http_server_without_engine

NOWHERE = "ipc:///nonexistent/krea2"
HEAD_S = 0.3
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.http_connections.HEAD_S", HEAD_S)


@pytest.mark.parametrize("answered", [0, 2])
@pytest.mark.parametrize("start", [b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_head_that_does_not_arrive_closes_the_connection(start: bytes, answered: int) -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client, asyncio.timeout(DEADLINE_S):
            address = client.base_url
            reader, writer = await asyncio.open_connection(address.host, address.port)
            for _ in range(answered):
                writer.write(REQUEST)
                assert b'{"status":"ok"}' in await reader.readuntil(b"}")
            if answered and not start:  # which keep-alive allows for longer
                writer.write(b"G")

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

    run(test())


def test_a_connection_that_is_kept_alive_serves_for_longer_than_a_head_may_take() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client, asyncio.timeout(DEADLINE_S):
            address = client.base_url
            reader, writer = await asyncio.open_connection(address.host, address.port)
            for _ in range(4):
                writer.write(REQUEST)
                assert b'{"status":"ok"}' in await reader.readuntil(b"}")
                await asyncio.sleep(HEAD_S / 2)
            await asyncio.sleep(HEAD_S)
            writer.write(REQUEST + REQUEST)
            for _ in range(2):
                assert b'{"status":"ok"}' in await reader.readuntil(b"}")
            writer.close()

    run(test())


def test_a_request_may_take_longer_than_its_head() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client, asyncio.timeout(DEADLINE_S):
            address = client.base_url
            reader, writer = await asyncio.open_connection(address.host, address.port)
            head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
            writer.write(head.encode() + b"\r\n")
            for byte in b"not json!":
                await asyncio.sleep(HEAD_S / 5)
                writer.write(bytes([byte]))
            assert b" 400 " in await reader.readline()
            writer.close()

    run(test())


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[0]), limits[1]))
        allow_many_connections()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
