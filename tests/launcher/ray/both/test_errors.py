"""What is refused, with the same status, sentence and shape by either server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.launcher.http_servers import PATH
from tests.launcher.processes import PATIENCE_S
from tests.launcher.ray.both.sent import BODY, BROWSER, LONG, REFUSED, Refused, refused
from tests.launcher.ray.servers import APP, MAX_QUEUE, Served

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case.status} {case.method} {case.path} {case.param}")
def test_what_is_refused_says_what_was_wrong(server: Served, case: Refused) -> None:
    answer = server.ask(case.method, case.path, **case.sent)
    told = refused(answer)
    error = told["error"]
    assert (answer.status_code, error["code"], error["param"]) == (case.status, case.code, case.param), answer.text
    kind = "rate_limit_error" if case.status == 429 else "invalid_request_error"
    assert error["type"] == kind
    assert error["message"]
    if case.path.startswith("/sdapi/"):
        assert told["detail"] == error["message"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    if case.status == 401:
        assert answer.headers["www-authenticate"].startswith("Basic" if case.path.startswith("/sdapi/") else "Bearer")


def test_a_full_queue_is_told_with_the_seconds_after_which_to_come_again(server: Served) -> None:
    lines: list[Iterator[str]] = []
    with ExitStack() as waiting:
        client = waiting.enter_context(server.client())
        for _ in range(server.replicas * 4 * MAX_QUEUE):  # more than may wait and run
            body = LONG | {"stream": True, "progress": True}
            answer = waiting.enter_context(client.stream("POST", PATH, json=body))
            if answer.status_code != 200:
                answer.read()
                break
            lines.append(answer.iter_lines())  # which hangs up when it is forgotten
            assert next(lines[-1]) == "event: image_generation.accepted"
        assert answer.status_code == 429
        error = refused(answer)["error"]
        assert (error["code"], error["type"], error["param"]) == ("queue_full", "rate_limit_error", None)
        assert int(answer.headers["retry-after"]) >= 1
        assert sum(server.load()) >= MAX_QUEUE  # one that waited may have begun meanwhile, and none has ended
    server.wait_for_rest()
    assert server.post(PATH, BODY).status_code == 200


def test_pages_of_other_origins_may_use_it_where_they_are_allowed(server: Served) -> None:
    for path in (PATH, "/v1/models", "/", "/nothing"):
        asked = server.ask("OPTIONS", path, headers=BROWSER | {"Authorization": ""})
        assert (asked.status_code, asked.content) == (204, b""), path
        assert asked.headers.get_list("access-control-allow-origin") == [APP]
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert asked.headers["access-control-allow-headers"] == BROWSER["Access-Control-Request-Headers"]
        assert asked.headers.get_list("vary") == ["Origin"]
        other = server.ask("OPTIONS", path, headers=BROWSER | {"Origin": "https://evil.example", "Authorization": ""})
        assert (other.status_code, refused(other)["error"]["code"]) == (403, "origin_not_allowed")
        assert not [name for name in other.headers if name.startswith("access-control-")]
    for status, body in ((200, BODY), (400, BODY | {"steps": -1}), (200, BODY | {"stream": True})):
        answer = server.post(PATH, body, Origin=APP)
        assert answer.status_code == status, answer.text
        assert answer.headers.get_list("access-control-allow-origin") == [APP]
        assert "Retry-After" in answer.headers["access-control-expose-headers"]
    own = server.post(PATH, BODY, Origin=server.url)
    assert own.status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nbad header\r\n\r\n",
        b"POST /v1/loras HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: x\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_the_server_lives(server: Served, sent: bytes) -> None:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=PATIENCE_S) as connection:
        connection.sendall(sent)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.split(b" ", 2)[1] == b"400", answer
    assert server.ask("GET", "/health").status_code == 200
