"""Every API takes which steps are saved and where images are guided, and answers what was computed of each image."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from launcher.messages.message_parts import CacheChoice
from tests.launcher.http.apis.fake_link import PROMPT, FakeLink, fake_server, png
from tests.launcher.http.http_requests import error_of
from tests.launcher.http_servers import PATH, events_of

EDITS, CHAT, TXT2IMG = "/v1/images/edits", "/v1/chat/completions", "/sdapi/v1/txt2img"
TOLD = {"block_evaluations": 24, "of": 36, "blocks": 6, "steps": [[6, 6], [0, 6], [6, 0]]}
CACHE = {"method": "blocks", "warmup_steps": "4", "threshold": 0.1, "order": None}
CHOICE = CacheChoice(method="blocks", warmup_steps=4, threshold=0.1)
SGLANGS = {"enable_cache_dit": True, "cache_dit_params": {"max_warmup_steps": 4, "residual_diff_threshold": 0.1}}
SAID = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[TestClient, FakeLink]]:
    with fake_server() as server:
        yield server


def posted(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("given", "cache"),
    [
        ({"cache": "Quality"}, "quality"),
        ({"cache": CACHE}, CHOICE),
        ({"cache": "warmup_steps=4, threshold=0.1"}, CHOICE),
        ({"cache": {"method": "velocity", "order": 0}}, CacheChoice(method="velocity", order=0)),
        (SGLANGS, CHOICE),
        ({"extra_body": SGLANGS}, CHOICE),
        ({"enable_teacache": True}, "quality"),
    ],
)
def test_images_take_a_cache_and_answer_what_was_computed(
    server: tuple[TestClient, FakeLink], given: dict[str, Any], cache: object
) -> None:
    client, link = server
    answer = posted(client, PATH, {"prompt": PROMPT, "n": 2, **given})
    assert link.request.cache == cache
    assert [image["computed"] for image in answer["data"]] == [TOLD, TOLD]
    assert any("not TeaCache" in warning for warning in answer["warnings"]) == ("enable_teacache" in given)
    if "extra_body" not in given:  # which is of the chat's own
        answer = posted(client, CHAT, {"messages": SAID, "n": 2, **given})
        assert (link.request.cache, answer["computed"]) == (cache, [TOLD, TOLD])
        assert any("not TeaCache" in warning for warning in answer["warnings"]) == ("enable_teacache" in given)


def test_what_has_no_plan_has_nothing_to_tell(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    (image,) = posted(client, PATH, {"prompt": PROMPT, "cache": False, "guidance_from": 0.0})["data"]
    assert (link.request.cache, "computed" in image) == ("off", False)
    assert "computed" not in posted(client, CHAT, {"messages": SAID})
    assert "computed" not in json.loads(posted(client, TXT2IMG, {"prompt": PROMPT})["info"])


def test_a_form_and_a_stream_do_so_too(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    files = {"image": ("a.png", png(), "image/png")}
    for cache in (json.dumps(CACHE), "warmup_steps=4,threshold=0.1"):
        answer = client.post(EDITS, data={"prompt": PROMPT, "cache": cache, "guidance_until": "0.5"}, files=files)
        assert answer.status_code == 200, answer.text
        assert (link.request.cache, link.request.guidance_until) == (CHOICE, 0.5)
        assert answer.json()["data"][0]["computed"] == TOLD
    answer = client.post(PATH, json={"prompt": PROMPT, "n": 2, "cache": "fast", "stream": True})
    assert [event["computed"] for _, event in events_of(answer.text)] == [TOLD, TOLD]
    chunks = client.post(CHAT, json={"messages": SAID, "cache": "fast", "stream": True}).text
    (told,) = [json.loads(line[6:])["computed"] for line in chunks.split("\n") if '"computed"' in line]
    assert told == [TOLD]


def test_a1111_does_so_too(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    gated = {"cfg_scale": 1, "guidance": 2.0, "guidance_from": 0.1, "guidance_until": 0.5, "guidance_outside": "last"}
    for given, cache in (("fast", "fast"), (CACHE, CHOICE), ("warmup_steps=4,threshold=0.1", CHOICE)):
        answer = posted(client, TXT2IMG, {"prompt": PROMPT, "cache": given, **gated})
        asked = link.request
        assert asked.cache == cache
        assert (asked.guidance_from, asked.guidance_until, asked.guidance_outside) == (0.1, 0.5, "last")
        assert json.loads(answer["info"])["computed"] == [TOLD]
        assert base64.b64decode(answer["images"][0])


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({"cache": "most"}, "cache", "cache must be one of off, quality, fast, or its fields, got 'most'"),
        ({"cache": 3}, "cache", "cache must be off, quality, fast, or fields as method=blocks,threshold=0.1, got 3"),
        ({"cache": {"steps": 3}}, "cache", "cache has the fields method, warmup_steps, "),
        ({"cache": {"method": "teacache"}}, "cache", "cache.method must be one of blocks, velocity, got 'teacache'"),
        ({"cache": {"warmup_steps": 1.5}}, "cache", "cache.warmup_steps must be a whole number, got 1.5"),
        ({"cache": {"first_blocks": 6}}, "cache", "cache.first_blocks and cache.last_blocks must be"),
        ({"guidance_until": 2}, "guidance_until", "guidance_until must be between 0 and 1"),
        ({"guidance_outside": "none"}, "guidance_outside", "guidance_outside must be 'off' or 'last', got 'none'"),
        (
            {"cache_dit_params": {"taylorseer_order": 2}},
            "cache_dit_params",
            "cache_dit_params.taylorseer_order must be between 0 and 1, got 2",
        ),
        ({"cfg_gate_step": 1.5}, "cfg_gate_step", "cfg_gate_step must be between 0 and 1"),
    ],
)
def test_what_is_wrong_is_told_at_every_door(
    server: tuple[TestClient, FakeLink], given: dict[str, Any], param: str, message: str
) -> None:
    client, _ = server
    doors = [(PATH, {"prompt": PROMPT}), (CHAT, {"messages": SAID})]
    if param in ("cache", "guidance_until"):
        doors.append((TXT2IMG, {"prompt": PROMPT}))
    for path, body in doors:
        error = error_of(client.post(path, json=body | given))
        assert (error["param"], error["code"]) == (param, "invalid_parameter")
        assert error["message"].startswith(message), (path, error)
