"""How requests come, whatever they ask for: versions of HTTP, headers, bodies in pieces, and keys."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.launcher.fake_ranks import DEADLINE_S, run
from tests.launcher.http.clients.tables.rows import GENERATIONS, SECRET, Got, b64
from tests.launcher.http.http_requests import error_of
from tests.launcher.http_servers import PROMPT, http_server_without_engine

BODY = json.dumps({"prompt": PROMPT}).encode()
LENGTH = f"Content-Length: {len(BODY)}"
JSON = "Content-Type: application/json"
CHUNKED = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:5], BODY[5:])) + b"0\r\n\r\n"


class Wire:
    """A connection on which everything is sent as it is."""

    def __init__(self, url: str) -> None:
        address = httpx.URL(url)
        self.host = f"Host: {address.netloc.decode()}"
        self._url = url
        self._socket = socket.create_connection((address.host, address.port or 80), timeout=DEADLINE_S)

    def send(self, *head: str, body: bytes = b"") -> None:
        self._socket.sendall("\r\n".join((*head, "", "")).encode("latin-1") + body)

    def more(self, body: bytes) -> None:
        self._socket.sendall(body)

    def line(self) -> str:
        """Read what has been sent up to the next empty line."""
        read = b""
        while not read.endswith(b"\r\n\r\n"):
            part = self._socket.recv(1)
            assert part, f"the connection ended after {read!r}"
            read += part
        return read.decode("latin-1")

    def answer(self) -> Got:
        """Read one answer."""
        head = self.line().split("\r\n")
        fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:] if line)]
        answer = httpx.Response(int(head[0].split(" ")[1]), headers=fields)
        content = b""
        while len(content) < int(answer.headers["content-length"]):
            content += self._socket.recv(65536)
        return Got(httpx.Response(answer.status_code, headers=fields, content=content), self._url)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def wire(url: str) -> Iterator[Wire]:
    wire = Wire(url)
    yield wire
    wire.close()


@pytest.mark.parametrize(
    "headers",
    [
        (JSON,),
        ("content-type: application/json; charset=utf-8",),
        ("CONTENT-TYPE: Application/JSON;charset=UTF-8",),
        (),
        (JSON, "Accept: image/png"),
        (JSON, "Accept: text/event-stream"),
        (JSON, "Accept-Encoding: gzip, deflate, br, zstd"),
        (JSON, "User-Agent:"),
        (JSON, "Authorization:"),
        (JSON, "Authorization: Bearer "),
        (JSON, "Authorization: Bearer"),
        (JSON, "Authorization: Basic Og=="),
        (JSON, "api-key: none"),
        (JSON, "OpenAI-Organization: ", "OpenAI-Project: "),
        (JSON, "Connection: close"),
        (JSON, "Forwarded: for=1.2.3.4", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https"),
    ],
    ids=" ".join,
)
def test_headers_of_all_kinds(wire: Wire, headers: tuple[str, ...]) -> None:
    wire.send(f"POST {GENERATIONS} HTTP/1.1", wire.host, LENGTH, *headers, body=BODY)
    b64()(wire.answer())


def test_http_1_0(wire: Wire) -> None:
    wire.send(f"POST {GENERATIONS} HTTP/1.0", wire.host, LENGTH, JSON, body=BODY)
    b64()(wire.answer())


def test_a_body_that_waits_to_be_asked_for(wire: Wire) -> None:
    wire.send(f"POST {GENERATIONS} HTTP/1.1", wire.host, LENGTH, JSON, "Expect: 100-continue")
    assert wire.line().startswith("HTTP/1.1 100 ")
    wire.more(BODY)
    b64()(wire.answer())


def test_a_body_in_chunks_and_another_request_on_the_same_connection(wire: Wire) -> None:
    for _ in range(2):
        wire.send(f"POST {GENERATIONS} HTTP/1.1", wire.host, JSON, "Transfer-Encoding: chunked", body=CHUNKED)
        b64()(wire.answer())


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/", "//v1/models", "/v1//models", "/v1/models?limit=20", "/v1/models/dall-e-3"]
)
def test_models_are_found_with_slashes_too_many(wire: Wire, path: str) -> None:
    wire.send(f"GET {path} HTTP/1.1", wire.host, "Authorization: Bearer ")
    answer = wire.answer().json
    assert "dall-e-3" in ([model["id"] for model in answer["data"]] if "data" in answer else answer["id"])


@pytest.mark.parametrize("path", ["/health", "/health/", "/ready"])
def test_probes_need_no_more_than_a_path(wire: Wire, path: str) -> None:
    wire.send(f"GET {path} HTTP/1.0")
    assert wire.answer().answer.status_code == 200


def test_a_path_without_v1_is_told_what_lacks(wire: Wire) -> None:
    for method, path in (("GET", "/models"), ("POST", "/images/generations"), ("POST", "/chat/completions")):
        wire.send(f"{method} {path} HTTP/1.1", wire.host, "Content-Length: 0")
        answer = wire.answer().answer
        assert answer.status_code == 404
        assert f"did you mean /v1{path}?" in error_of(answer)["message"]


def test_a_route_that_has_another_method_names_it(wire: Wire) -> None:
    for path in ("/v1/chat/completions", "/v1/images/generations", "/sdapi/v1/txt2img"):
        wire.send(f"GET {path} HTTP/1.1", wire.host)
        answer = wire.answer().answer
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_key_is_taken_as_clients_write_it_and_others_are_told_how() -> None:
    async def test() -> None:
        async with (
            http_server_without_engine("ipc:///nonexistent/krea2", api_keys=(SECRET,)) as client,
            httpx.AsyncClient(base_url=client.base_url, timeout=DEADLINE_S) as anyone,
        ):

            async def answered(**headers: Any) -> httpx.Response:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                return await anyone.get("/v1/models", headers=named)

            for written in (f"Bearer {SECRET}", f"bearer {SECRET}", f"BEARER {SECRET}", f"Bearer  {SECRET}"):
                assert (await answered(Authorization=written)).status_code == 200, written
            for headers in (
                {},
                {"Authorization": "Bearer"},
                {"Authorization": SECRET},
                {"Authorization": "Bearer guess"},
                {"api_key": "guess"},
                {"Authorization": "Basic Og=="},
            ):
                refused = await answered(**headers)
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), headers
                assert "API key" in error_of(refused)["message"]

    run(test())
