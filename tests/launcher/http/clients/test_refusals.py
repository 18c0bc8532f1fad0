"""What only other servers have is refused with what there is instead."""

from __future__ import annotations

import logging
import re

import httpx
import pytest

from launcher.http.answers.other_servers import _INSTEAD, instead_of
from tests.launcher.fake_ranks import DEADLINE_S
from tests.launcher.http.clients.tables.rows import form
from tests.launcher.http.http_requests import error_of
from tests.launcher.processes import wait_until

LARGER_THAN_ALLOWED = 2**20 + 1


def test_what_is_named_instead_is_there_and_what_is_refused_is_not(url: str) -> None:
    ours = httpx.get(f"{url}/openapi.json", timeout=DEADLINE_S).json()["paths"]
    named = {path for told in _INSTEAD.values() for path in re.findall(r"/(?:v1|sdapi)/[\w/]+", told)}
    assert named
    assert named - {"/v1/chat/completions", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"} <= {*ours}
    assert not [path for path in ours if instead_of(path)]


@pytest.mark.parametrize("path", ["moderations", "batches", "files", "fine_tuning/jobs", "vector_stores", "realtime"])
def test_what_else_openai_has_is_not_mistaken_for_a_route_of_ours(url: str, path: str) -> None:
    answer = httpx.get(f"{url}/v1/{path}", timeout=DEADLINE_S)
    assert answer.status_code == 404
    assert f"/v1/{path}: this server draws: POST /v1/images/generations" in error_of(answer)["message"]


@pytest.mark.parametrize("path", ["/v1/images/variations", "/v1/images/variations/"])
def test_an_image_that_is_too_large_to_be_sent_is_not_the_reason(url: str, path: str) -> None:
    body, content_type = form(("image", ("a.png", bytes(LARGER_THAN_ALLOWED), "image/png")), prompt="with a hat")
    answer = httpx.post(url + path, content=body, headers={"Content-Type": content_type}, timeout=DEADLINE_S)
    assert answer.status_code == 404
    assert "POST /v1/images/edits" in error_of(answer)["message"]


def test_other_bodies_that_are_too_large_are_told_so(url: str) -> None:
    answer = httpx.post(f"{url}/v1/loras", content=bytes(LARGER_THAN_ALLOWED), timeout=DEADLINE_S)
    assert answer.status_code == 413


def test_what_was_wrong_is_in_the_log_for_programs_that_do_not_show_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent = ({"prompt": "a", "size": "7x9"}, {"prompt": "a", "colour": "red"}, {"prompt": "a"})
    with caplog.at_level(logging.INFO, logger="krea2"):
        answers = [httpx.post(f"{url}/v1/images/generations", json=body, timeout=DEADLINE_S) for body in sent]
        answers.append(
            httpx.post(f"{url}/v1/images/variations", content=bytes(LARGER_THAN_ALLOWED), timeout=DEADLINE_S)
        )
        by_id = {answer.headers["x-request-id"]: answer for answer in answers}

        def logged() -> dict[str, str | None]:
            fields = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "http"]
            return {one["request_id"]: one.get("message") for one in fields if one["request_id"] in by_id}

        wait_until(lambda: len(logged()) == len(by_id), "the log's lines")
        for name, answer in by_id.items():
            told = None if answer.status_code == 200 else error_of(answer)["message"]
            assert logged()[name] == told
