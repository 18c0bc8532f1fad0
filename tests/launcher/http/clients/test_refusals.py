"""What only other servers have is refused with what there is instead."""

from __future__ import annotations

import re

import httpx
import pytest

from launcher.http.answers.other_servers import _INSTEAD, instead_of
from tests.launcher.fake_ranks import DEADLINE_S
from tests.launcher.http.clients.rows import form
from tests.launcher.http.http_requests import error_of

LARGER_THAN_ALLOWED = 2**20 + 1


def test_what_is_named_instead_is_there_and_what_is_refused_is_not(url: str) -> None:
    ours = httpx.get(f"{url}/openapi.json", timeout=DEADLINE_S).json()["paths"]
    named = {path for told in _INSTEAD.values() for path in re.findall(r"/(?:v1|sdapi)/[\w/]+", told)}
    assert named
    assert named - {"/v1/chat/completions", "/sdapi/v1/txt2img"} <= {*ours}
    assert not [path for path in ours if instead_of(path)]


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/edits/", "/sdapi/v1/img2img"])
def test_an_image_that_is_too_large_to_be_sent_is_not_the_reason(url: str, path: str) -> None:
    body, content_type = form(prompt="with a hat", image=("a.png", bytes(LARGER_THAN_ALLOWED)))
    answer = httpx.post(url + path, content=body, headers={"Content-Type": content_type}, timeout=DEADLINE_S)
    assert answer.status_code == 404
    assert "from a prompt alone" in error_of(answer)["message"]


def test_other_bodies_that_are_too_large_are_told_so(url: str) -> None:
    answer = httpx.post(f"{url}/v1/images/generations", content=bytes(LARGER_THAN_ALLOWED), timeout=DEADLINE_S)
    assert answer.status_code == 413
