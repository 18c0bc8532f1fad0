"""Whom images are for, and which thresholds filters are to apply, get to the engine from every API and from Python."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from launcher.client.parameters import make_request
from tests.launcher.http.apis.fake_link import FakeLink, fake_server, png

SAID = {"messages": [{"role": "user", "content": "x"}]}
PICTURE = {"prompt": "x", "strength": 0.5, "image": base64.b64encode(png()).decode()}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[TestClient, FakeLink]]:
    with fake_server() as server:
        yield server


BODIES = [("images/generations", {"prompt": "x"}), ("images/edits", PICTURE), ("chat/completions", SAID)]


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"user": "a", "safety_identifier": "b", "moderation": "low"}, ("b", "low")),
        ({"user": 7, "moderation": None, "safety_identifier": ""}, ("7", "auto")),
        ({}, (None, "auto")),
    ],
)
def test_it_is_taken_as_openais_clients_send_it(
    server: tuple[TestClient, FakeLink], path: str, body: dict[str, Any], sent: dict[str, Any], expected: object
) -> None:
    client, link = server
    answer = client.post(f"/v1/{path}", json=body | sent)
    assert (answer.status_code, answer.json().get("warnings", [])) == (200, [])
    assert (link.request.user, link.request.moderation) == expected


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"safety_identifier": "b" * 257}, "safety_identifier must be at most 256 characters, got 257"),
        ({"user": "b" * 257}, "user must be at most 256 characters, got 257"),
        ({"user": ["secret"]}, "user must be a text"),
        ({"moderation": "off"}, "moderation must be 'auto' or 'low', got 'off'"),
    ],
)
def test_what_it_cannot_be_is_said_without_saying_who_it_is(
    server: tuple[TestClient, FakeLink], path: str, body: dict[str, Any], sent: dict[str, Any], message: str
) -> None:
    answer = server[0].post(f"/v1/{path}", json=body | sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["message"]) == (400, *sent, message)


def test_python_knows_the_same_names() -> None:
    request, _, _ = make_request("x", {"user": "a", "safety_identifier": "b", "moderation": "low"}, "generate")
    assert (request.user, request.moderation) == ("b", "low")
