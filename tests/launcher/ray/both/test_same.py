"""What is one and the same from either server: pictures, files, descriptions, refusals, word for word."""

from __future__ import annotations

import re
from typing import Any

import httpx
import numpy as np
import pytest

from tests.launcher.http_servers import PATH, PROMPT
from tests.launcher.ray.both.sent import (
    A1111,
    BODY,
    CHAT,
    EDITS,
    IMG2IMG,
    REFUSED,
    SAID,
    TXT2IMG,
    data_url,
    half_mask,
    images,
    pixels,
    png,
    refused,
)
from tests.launcher.ray.servers import Served

pytestmark = pytest.mark.cluster
# Of answers, besides who connects how, and when.
HEADERS = (
    "content-type", "cache-control", "etag", "allow", "vary", "content-security-policy",
    "x-content-type-options", "www-authenticate", "x-should-retry", "accept-ranges", "idempotent-replayed",
)  # fmt: skip
# Each alone, so that no other request has a part in its steps.
DRAWN: list[dict[str, Any]] = [
    BODY,
    BODY | {"n": 2, "size": "128x96"},
    BODY | {"seed": 7, "steps": 9, "prompt": "a green square on a white background"},
    BODY | {"loras": [{"name": "ink", "strength": 0.7}]},
    BODY | {"guidance": 2.0, "negative_prompt": "blue"},
    BODY | {"cache": {"method": "velocity", "warmup_steps": 2}, "steps": 7},
    BODY | {"cache": {"warmup_steps": 2, "threshold": 1.0}, "guidance_until": 0.5, "guidance": 2.0, "steps": 7},
    BODY | {"image": data_url(png()), "strength": 0.5},
    BODY | {"image": data_url(png()), "mask": data_url(half_mask())},
    BODY | {"image": data_url(png()), "outpaint": {"right": 32}},
]


def same_headers(one: httpx.Response, other: httpx.Response) -> None:
    assert one.status_code == other.status_code, (one.url, one.text, other.text)
    for name in HEADERS:
        assert one.headers.get_list(name) == other.headers.get_list(name), (one.url, name, one.text, other.text)


def shape(value: Any) -> Any:
    """The names and kinds of what is in a JSON answer, whatever its numbers and texts are."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return "a number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


@pytest.mark.parametrize(
    "body", DRAWN, ids=lambda body: " ".join(sorted({*body} - {*BODY})) or f"{body['size']} {body['steps']}"
)
def test_a_seed_alone_draws_the_same_bits(served: Served, clustered: Served, body: dict[str, Any]) -> None:
    answers = [server.post(PATH, body) for server in (served, clustered)]
    one, other = (images(answer) for answer in answers)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert shape(answers[0].json()) == shape(answers[1].json())
    known = ("seed", "size", "output_format", "background", "usage", "warnings")
    first, second = (answer.json() for answer in answers)
    assert {name: first.get(name) for name in known} == {name: second.get(name) for name in known}
    computed = [[image.get("computed") for image in answer["data"]] for answer in (first, second)]
    assert computed[0] == computed[1] == [computed[0][0]] * len(computed[0])
    assert (computed[0][0] is not None) == ("cache" in body)
    assert computed[0][0] is None or computed[0][0]["block_evaluations"] < computed[0][0]["of"]


def test_the_other_apis_draw_the_same_bits(served: Served, clustered: Served) -> None:
    form = {"data": {"prompt": PROMPT, "steps": 2, "seed": 1, "strength": 0.6}, "files": {"image": ("a.png", png())}}
    chat = {"messages": SAID, "size": "96x96", "steps": 2, "seed": 1, "output_format": "png", "answer_as": "images"}
    over = A1111 | {"init_images": [data_url(png())], "denoising_strength": 0.6}
    found = []
    for server in (served, clustered):
        edited = images(server.ask("POST", EDITS, **form))[0]
        (said,) = server.post(CHAT, chat).json()["choices"][0]["message"]["images"]
        others = [
            pixels(server.post(path, body).json()["images"][0]) for path, body in ((TXT2IMG, A1111), (IMG2IMG, over))
        ]
        found.append([edited, pixels(said["image_url"]["url"]), *others])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_what_is_refused_is_refused_in_the_same_words(served: Served, clustered: Served) -> None:
    for case in REFUSED:
        one, other = (server.ask(case.method, case.path, **case.sent) for server in (served, clustered))
        same_headers(one, other)
        told = [re.sub(r"about [\d.]+ s", "about N s", str(refused(answer))) for answer in (one, other)]
        assert told[0] == told[1], case


def test_what_is_there_to_be_read_is_the_same(served: Served, clustered: Served) -> None:
    described = served.ask("GET", "/openapi.json").json()
    assert described == clustered.ask("GET", "/openapi.json").json()
    paths = {path for path, methods in described["paths"].items() if "get" in methods and "{" not in path}
    page = {f"/{path}" for path in re.findall('(?:href|src)="([a-z][^"]+)"', served.ask("GET", "/").text)}
    changing = {
        "/metrics",
        "/ready",
        "/health_generate",
        "/v1/status",
        "/v1/models",
        "/v1/models/krea",
        "/sdapi/v1/progress",
    }
    for path in {"/", "/favicon.ico", *paths, *page} - changing:
        one, other = (server.ask("GET", path) for server in (served, clustered))
        same_headers(one, other)
        contents = [answer.content.replace(str(answer.url.port).encode(), b"PORT") for answer in (one, other)]
        assert contents[0] == contents[1], path
    for path in changing - {"/metrics", "/v1/status"}:
        one, other = (server.ask("GET", path) for server in (served, clustered))
        assert shape(one.json()) == shape(other.json()), path
