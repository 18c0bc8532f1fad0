"""Bodies of HTTP requests: too long, not arriving, or senseless."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from launcher.http import protocol
from launcher.messages.limits import Limits
from tests.launcher.fake_ranks import DEADLINE_S, run
from tests.launcher.http.http_requests import JSON, NOWHERE, error_of, exchange, head
from tests.launcher.http_servers import PATH, http_server_without_engine

# So that a body of this path, which may have pictures, is little longer than a text.
SHORT: dict[str, Any] = {"max_body_bytes": 5000, "limits": Limits(max_image_bytes=1)}


def test_a_body_has_a_limit_however_it_comes() -> None:
    async def endless(part: bytes) -> AsyncIterator[bytes]:
        while True:
            yield part
            await asyncio.sleep(0)

    async def test() -> None:
        async with http_server_without_engine(NOWHERE, **SHORT) as client:
            fits = await client.post(PATH, content=json.dumps({"prompt": "x" * 4900}), headers=JSON)
            assert fits.status_code == 503
            declared = await client.post(PATH, content=json.dumps({"prompt": "x" * 8000}), headers=JSON)
            assert (declared.status_code, error_of(declared)["code"]) == (413, "body_too_large")
            answer = await raw_request(
                client, b"Transfer-Encoding: chunked\r\n", endless(b"3e8\r\n" + b" " * 1000 + b"\r\n")
            )
            assert b" 413 " in answer.splitlines()[0]
            assert b'"code":"body_too_large"' in answer
            answer = await raw_request(client, b"Content-Length: 1000000000\r\n", endless(b" " * 1000))
            assert b" 413 " in answer.splitlines()[0]

    run(test())


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(DEADLINE_S)

    async def test() -> None:
        monkeypatch.setattr("launcher.http.guard.BODY_S", 0.1)
        async with http_server_without_engine(NOWHERE) as client:
            answer = await raw_request(client, b"Content-Length: 100\r\n", never())
            assert b" 408 " in answer.splitlines()[0]
            assert b'"code":"body_timeout"' in answer

    run(test())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body must be a JSON object"),
        (b"{", "the body is not valid JSON: "),
        (b"[]", "the body must be a JSON object"),
        (b"null", "the body must be a JSON object"),
        (b'"text"', "the body must be a JSON object"),
        (b"\xff\xfe", "the body"),
        (b"[" * 100_000, "the body"),
        (b'{"prompt": 1' + b"0" * 5000 + b"}", "the body"),
        (b"{}", "prompt is required"),
        (b'{"prompt": null}', "prompt is required"),
        (b'{"prompt": "\\ud800"}', "the body is not valid JSON: texts must be valid Unicode, got lone surrogates"),
        (b'{"prompt": "x", "\\ud800": 1}', "the body is not valid JSON: texts must be valid Unicode"),
        (b'{"prompt": "x", "user": ["\\udfff"]}', "the body is not valid JSON: texts must be valid Unicode"),
        (b'{"prompt": ["a secret"]}', "prompt must be a valid string, got a list"),
        (b'{"prompt": "x", "cfg_scale": 1%s}' % (b"0" * 400), "cfg_scale must be a number, got 1"),
        (b'{"prompt": "x", "guidance": NaN}', "guidance must be a finite number, got nan"),
        (b'{"prompt": "x", "n": true}', "n must be a whole number, got True"),
        (b'{"prompt": "x", "n": 1.5}', "n must be a whole number, got 1.5"),
        (b'{"prompt": "x", "stream": "yes"}', "stream must be true or false, got 'yes'"),
        (b'{"prompt": "x", "stream": true, "partial_images": 4}', "partial_images must be less than or equal to 3"),
        (b'{"prompt": "x", "prompt": "y"}', "the body is not valid JSON: the key 'prompt' is there twice"),
        (b'{"prompt": "x", "loras": [{"name": "a", "name": "b"}]}', "the body is not valid JSON: the key 'name'"),
        ('{"prompt": "x", "size": "\u0661\u0662\u0668x128"}'.encode(), "size must be WIDTHxHEIGHT"),
        ('{"prompt": "x", "seed": \u0661}'.encode(), "the body is not valid JSON: Expecting value"),
    ],
)
def test_a_body_that_makes_no_sense_is_a_bad_request(body: bytes, message: str) -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            answer = await client.post(PATH, content=body, headers=JSON)
            assert answer.status_code == 400
            error = error_of(answer)
            assert error["message"].startswith(message), error
            assert error["type"] == "invalid_request_error"

    run(test())


def test_a_body_in_too_many_chunks_is_given_up_before_they_are_taken_apart(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="krea2")

    async def send(client: httpx.AsyncClient, chunk: bytes, count: int, until: bytes) -> tuple[bytes, float]:
        """The answer, and the seconds that client and server computed."""
        began = time.process_time()
        body = parts_of(chunk * count + b"0\r\n\r\n")
        answer = await raw_request(client, b"Transfer-Encoding: chunked\r\n", body, until)
        return answer, time.process_time() - began

    def logged() -> list[dict[str, Any]]:
        return [vars(record)["fields"] for record in caplog.records if record.getMessage() == "http"]

    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client, asyncio.timeout(DEADLINE_S):
            for chunk, count in ((b"1\r\nx\r\n", 1024), (b"40\r\n" + b"x" * 64 + b"\r\n", 10_000)):
                _, taken_apart_s = await send(client, chunk, count, b'{"error":{"message":')  # which is about the JSON
            answer, given_up_s = await send(client, b"1\r\nx\r\n", 500_000, b"too many chunks")
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert b"connection: close" in answer
            assert given_up_s < 10 * taken_apart_s  # and not 50 times as long
            while len(logged()) < 3:
                await asyncio.sleep(0.01)
            assert (logged()[-1]["status"], logged()[-1]["error"]) == (400, "invalid_parameter")

    run(test())


def test_a_body_of_two_lengths_is_the_last_of_its_connection() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client, asyncio.timeout(DEADLINE_S):
            address = client.base_url
            smuggled = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
            body = b"2\r\n{}\r\n0\r\n\r\n"
            for fields, is_last in ((b"Content-Length: %d\r\n" % (len(body) + len(smuggled)), True), (b"", False)):
                reader, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(head(address, b"Transfer-Encoding: chunked\r\n", fields) + body + smuggled)
                first = await reader.readuntil(b"}}")
                assert first.startswith(b"HTTP/1.1 400 ")
                assert b"prompt is required" in first
                assert (b"connection: close" in first.lower()) is is_last
                if is_last:
                    assert await reader.read() == b""
                else:
                    assert b'{"status":"ok"}' in await reader.readuntil(b"}")
                writer.close()

    run(test())


MANY_VALUES, LONG_KEY, DEEP = "at most 4096 values", "keys of at most 100 characters", "at most 8 objects and lists"
TOO_MUCH = {  # of 1 MB, each of which took seconds or gigabytes
    "numbers": ('"loras": [' + ",".join(["1"] * 500_000) + "]", MANY_VALUES),
    "objects": ('"loras": [' + ",".join(["{}"] * 340_000) + "]", MANY_VALUES),
    "keys": (",".join(f'"k{index}": 1' for index in range(80_000)), MANY_VALUES),
    "a key": (f'"{"k" * 1_000_000}": 1', LONG_KEY),
    "lists in lists": ('"loras": ' + "[" * 1_000_000, DEEP),
    "objects in objects": ('"loras": ' + '{"a":' * 200_000, DEEP),
    "digits": ('"seed": ' + "9" * 1_000_000, "numbers of at most 4300 characters"),
}


@pytest.mark.parametrize("path", [PATH, "/v1/loras"])
def test_a_body_of_too_much_is_refused_before_anything_is_built(path: str) -> None:
    async def refused(client: httpx.AsyncClient, fields: str, allowed: str) -> float:
        """The seconds that client and server computed."""
        body = f'{{"prompt": "x", "name": "x", {fields}}}'.encode()
        began = time.process_time()
        answer = await client.post(path, content=body, headers=JSON)
        seconds = time.process_time() - began
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (400, "invalid_parameter")
        assert allowed in error["message"]
        assert len(error["message"]) < 200
        return seconds

    async def fewest(client: httpx.AsyncClient, fields: str, allowed: str) -> float:
        """The same, of which other threads or the garbage collector may need some, now and then."""
        return min([await refused(client, fields, allowed) for _ in range(3)])

    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            text_s = await fewest(client, f'"seed": "{"x" * 1_000_000}"', allowed="")
            for fields, allowed in TOO_MUCH.values():
                assert await fewest(client, fields, allowed) < 20 * text_s

    run(test())


def test_a_long_text_is_not_repeated_by_its_error() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            long = "\n" * 400_000
            for fields in ({"prompt": long}, {"size": long}, {"n": long}, {"output_format": long}, {"seed": [long]}):
                answer = await client.post(PATH, json={"prompt": "x"} | fields)
                assert answer.status_code == 400
                assert len(answer.content) < 1000

    run(test())


BODY_BYTES = 3_000_000
REFUSED = {  # before the body has come
    413: (b"Content-Length: %d\r\n" % BODY_BYTES, b"", b"}}"),
    400: (b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n" * 2000, b"too many chunks"),
}


async def refused(client: httpx.AsyncClient, connection: socket.socket, status: int) -> None:
    """Send the beginning of a request, and read the answer to its end."""
    loop, address = asyncio.get_running_loop(), client.base_url
    fields, start, until = REFUSED[status]
    connection.setblocking(False)
    await loop.sock_connect(connection, (address.host, address.port))
    await loop.sock_sendall(connection, head(address, fields) + start)
    answer = b""
    while part := await loop.sock_recv(connection, 65536):
        answer += part
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert until in answer


@pytest.mark.parametrize("status", REFUSED)
def test_who_sends_on_after_an_answer_is_not_hung_up_on(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_S", DEADLINE_S)

    async def test() -> None:
        async with (
            http_server_without_engine(NOWHERE, **SHORT) as client,
            asyncio.timeout(DEADLINE_S),
        ):
            with socket.socket() as connection:
                await refused(client, connection, status)
                await asyncio.get_running_loop().sock_sendall(connection, b" " * BODY_BYTES)
            for _ in range(5):
                answer = await client.post(PATH, content=b" " * BODY_BYTES, headers=JSON)
                assert answer.status_code == 413

    run(test())


@pytest.mark.parametrize("status", REFUSED)
@pytest.mark.parametrize(("bound", "most"), [("LINGER_S", 0.1), ("LINGER_BYTES", 1000), (None, None)])
def test_who_sends_on_without_end_is_hung_up_on(
    status: int, bound: str | None, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while, after many bytes, and when the server stops."""
    monkeypatch.setattr(protocol, "LINGER_S", DEADLINE_S)
    if bound is not None:
        monkeypatch.setattr(protocol, bound, most)

    async def send_on(connection: socket.socket) -> None:
        while True:
            await asyncio.get_running_loop().sock_sendall(connection, b" ")
            await asyncio.sleep(0)

    async def test() -> None:
        with socket.socket() as connection:
            async with (
                http_server_without_engine(NOWHERE, **SHORT) as client,
                asyncio.timeout(DEADLINE_S),
            ):
                await refused(client, connection, status)
                sending = asyncio.create_task(send_on(connection))
                if bound is not None:
                    await asyncio.wait((sending,))
            with pytest.raises(ConnectionError):
                await sending

    run(test())


async def raw_request(
    client: httpx.AsyncClient, fields: bytes, parts: AsyncIterator[bytes], until: bytes = b"}}"
) -> bytes:
    """What a server answers before it has read the whole body."""

    async def request() -> AsyncIterator[bytes]:
        yield head(client.base_url, fields)
        async for part in parts:
            yield part

    return await exchange(client.base_url, request(), until)


async def parts_of(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
