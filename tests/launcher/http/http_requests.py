"""HTTP requests byte by byte, and the errors that are answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.launcher.fake_ranks import DEADLINE_S
from tests.launcher.http_servers import PATH

NOWHERE = "ipc:///nonexistent/krea2"
JSON = {"Content-Type": "application/json"}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) - {"category"} == {"message", "type", "param", "code", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    return error


def head(address: httpx.URL, *fields: bytes) -> bytes:
    start = f"POST {PATH} HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/json\r\n"
    return start.encode() + b"".join(fields) + b"\r\n"


async def exchange(address: httpx.URL, request: AsyncIterator[bytes], until: bytes) -> bytes:
    """Send a request's parts as long as the server takes them. Returns what it answers up to `until`, or more.

    What has arrived is read also when it hangs up on the rest: the streams of asyncio would lose it.
    """
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, (address.host, address.port))

        async def send() -> None:
            async for part in request:
                await loop.sock_sendall(connection, part)

        sending = asyncio.create_task(send())
        try:
            answer = b""
            async with asyncio.timeout(DEADLINE_S):
                while until not in answer:
                    part = await loop.sock_recv(connection, 65536)
                    assert part, f"it hung up after {answer!r}"
                    answer += part
            return answer
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
