"""`POST /v1/images/edits`, and pictures in `POST /v1/images/generations`: what becomes of what clients send."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
import tracemalloc
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.config.engine_config import EngineConfig
from launcher.client.async_client import NO_FILES
from launcher.client.results import Event
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.message_parts import LoraChoice, Outpaint
from tests.launcher.fake_ranks import DEADLINE_S
from tests.launcher.http.apis.fake_link import PROMPT, FakeLink, fake_server, png
from tests.launcher.http.http_requests import error_of
from tests.launcher.http_servers import events_of
from tests.launcher.processes import wait_until

EDITS, GENERATIONS = "/v1/images/edits", "/v1/images/generations"
IMAGE, MASK = png(), png(colour=255, mode="L")
URL = f"data:image/png;base64,{base64.b64encode(IMAGE).decode()}"
FILES: Any = {"image": ("a.png", IMAGE, "image/png"), "mask": ("m.png", MASK, "image/png")}
LIMITS = Limits(max_image_bytes=20_000)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[TestClient, FakeLink]]:
    with fake_server(LIMITS, max_body_bytes=2000) as server:
        yield server


def test_a_form_with_a_picture_and_its_mask(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    data = {
        "prompt": PROMPT, "n": "2", "size": "96x64", "seed": "5", "strength": "0.5", "strength_steps": "full",
        "mask_crop": "32", "mask_feather": "4", "steps": "4", "negative_prompt": "red", "guidance": "2.5",
        "loras": '[{"name": "ink", "strength": 0.5}, "oil"]', "outpaint": "left=16,top=32", "quality": "high",
        "input_fidelity": "low", "background": "auto", "moderation": "low", "user": "a", "model": "demo",
        "output_format": "webp", "output_compression": "80", "response_format": "b64_json", "stream": "false",
        "explain": "true",
    }  # fmt: skip
    answer = client.post(EDITS, data=data, files=FILES, headers={"Idempotency-Key": "k"}).json()
    assert link.files == {"image": IMAGE, "mask": MASK}
    asked = link.request
    assert (asked.pictures, asked.num_images, asked.width, asked.height) == (("image", "mask"), 2, 96, 64)
    assert (asked.strength, asked.strength_steps, asked.mask_crop, asked.mask_feather) == (0.5, "full", 32, 4)
    assert (asked.seed, asked.steps, asked.guidance, asked.negative_prompt) == (5, 4, 2.5, "red")
    assert tuple(asked.loras) == (LoraChoice(name="ink", strength=0.5), LoraChoice(name="oil"))
    assert (asked.outpaint, asked.explain, asked.idempotency_key) == (Outpaint(left=16, top=32), True, "k")
    assert (asked.output_format, asked.output_compression) == ("webp", 80)
    assert (asked.moderation, asked.user) == ("low", "a")
    assert [base64.b64decode(image["b64_json"]) for image in answer["data"]] == [IMAGE] * 2
    assert answer["size"] == "96x64"
    assert answer["usage"] == {
        "input_tokens": 31, "input_tokens_details": {"text_tokens": 7, "image_tokens": 24},
        "output_tokens": 48, "output_tokens_details": {"text_tokens": 0, "image_tokens": 48}, "total_tokens": 79,
    }  # fmt: skip
    assert answer["warnings"] == []


@pytest.mark.parametrize(
    "sent",
    [
        {"files": {"image": FILES["image"]}},
        {"files": [("image[]", FILES["image"])]},
        {"files": [("image[0]", FILES["image"])]},
        {"files": [("images", FILES["image"])]},
        {"files": [("init_image", ("upload", IMAGE))]},
        {"files": {"image": FILES["image"], "mask": ("", b"")}},
        {"data": {"image": URL}, "files": {"x": ("", b"")}},
        {"data": {"image": URL.partition(",")[2]}, "files": {"x": ("", b"")}},
    ],
)
def test_the_names_and_kinds_of_a_picture_in_a_form(server: tuple[TestClient, FakeLink], sent: dict[str, Any]) -> None:
    client, link = server
    sent = sent | {"data": {"prompt": PROMPT} | sent.get("data", {})}
    answer = client.post(EDITS, **sent)
    assert answer.status_code == 200, answer.text
    assert (link.files, link.request.pictures) == ({"image": IMAGE}, ("image",))
    assert link.request.strength is None
    (told,) = answer.json()["warnings"]
    assert "neither mask nor strength" in told


@pytest.mark.parametrize("path", [EDITS, GENERATIONS])
@pytest.mark.parametrize(
    "image", [URL, [URL], {"image_url": URL}, [{"image_url": {"url": URL}}], URL.partition(",")[2]]
)
def test_a_picture_in_json(server: tuple[TestClient, FakeLink], path: str, image: Any) -> None:
    client, link = server
    answer = client.post(path, json={"prompt": PROMPT, "image": image, "strength": 0.3, "outpaint": {"right": 16}})
    assert answer.status_code == 200, answer.text
    assert (link.files, link.request.pictures, link.request.strength) == ({"image": IMAGE}, ("image",), 0.3)
    assert link.request.outpaint == Outpaint(right=16)
    assert answer.json()["warnings"] == []
    assert answer.json()["usage"]["input_tokens_details"]["image_tokens"] == 24


def test_without_a_picture_no_tokens_of_one_are_counted(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    answer = client.post(GENERATIONS, json={"prompt": PROMPT, "image": None, "mask": ""}).json()
    assert (link.files, link.request.pictures) == ({}, ())
    assert answer["usage"]["input_tokens_details"] == {"text_tokens": 7, "image_tokens": 0}


def test_a_stream_tells_of_an_edit(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    data = {"prompt": PROMPT, "stream": "true", "partial_images": "1", "progress": "true", "strength": "1"}
    answer = client.post(EDITS, data=data, files={"image": FILES["image"]})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    kinds = [f"image_edit.{kind}" for kind in ("accepted", "partial_image", "completed")]
    assert [kind for kind, _ in events] == [fields["type"] for _, fields in events] == kinds
    partial, completed = events[1][1], events[2][1]
    assert (partial["size"], completed["size"]) == ("auto", "96x64")
    assert base64.b64decode(completed["b64_json"]) == IMAGE
    assert completed["usage"]["input_tokens_details"] == {"text_tokens": 7, "image_tokens": 24}
    assert link.request.preview_every is not None


def test_a_strength_of_0_which_has_no_steps_may_have_previews(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    data = {"prompt": PROMPT, "stream": "true", "partial_images": "2", "strength": "0"}
    assert client.post(EDITS, data=data, files={"image": FILES["image"]}).status_code == 200
    assert (link.request.strength, link.request.preview_every) == (0, 1)


def test_links_are_answered_as_for_other_images(server: tuple[TestClient, FakeLink]) -> None:
    client, _ = server
    data = {"prompt": PROMPT, "response_format": "url"}
    url = client.post(EDITS, data=data, files={"image": FILES["image"]}).json()["data"][0]["url"]
    assert client.get(url).content == IMAGE


@pytest.mark.parametrize(
    ("data", "files", "param", "message"),
    [
        ({"prompt": "x"}, {"mask": FILES["mask"]}, "image", "image is required"),
        ({}, {"image": FILES["image"]}, "prompt", "prompt is required"),
        (
            {"prompt": "x"},
            {"file": FILES["image"]},
            "file",
            "a file of a form is not taken as 'file': send the picture",
        ),
        ({"prompt": "x"}, {"file": FILES["mask"], "image": FILES["image"]}, "file", "a file of a form is not taken as"),
        ({"prompt": "x"}, {"control_image": FILES["image"]}, "control_image", "control_image is not taken"),
        ({"prompt": "x"}, {"image": ("a.png", b"")}, "image", "image is an empty file"),
        ({"prompt": "x"}, [("image[]", FILES["image"])] * 2, "image", "image must be one: one picture is drawn over"),
        ({"prompt": "x"}, [("image", FILES["image"])] * 2, "image", "image must be one: one picture is drawn over"),
        (
            {"prompt": "x", "image": "https://a/b.png"},
            {"x": ("", b"")},
            "image",
            "image is an address, and this server",
        ),
        ({"prompt": "x", "strength": "2"}, {"image": FILES["image"]}, "strength", "strength must be between 0 and 1"),
        ({"prompt": "x", "strength": "a"}, {"image": FILES["image"]}, "strength", "strength must be a number, got 'a'"),
        ({"prompt": "x", "denoise": "2"}, {"image": FILES["image"]}, "denoise", "denoise must be between 0 and 1"),
        ({"prompt": "x", "outpaint[up]": "2"}, {"image": FILES["image"]}, "outpaint", "outpaint must be pixels to add"),
        ({"prompt": "x", "strengh": "1"}, {"image": FILES["image"]}, "strengh", "unknown parameter 'strengh': did you"),
        (
            {"prompt": "x", "control_image": "a"},
            {"image": FILES["image"]},
            "control_image",
            "control_image is not taken",
        ),
        ({"prompt": "x", "loras[][nam]": "a"}, {"image": FILES["image"]}, "loras", "loras[0].name is required"),
        ({"prompt": "x" * 2001}, {"image": FILES["image"]}, "prompt", "prompt must be at most 2000 bytes, got 2001"),
        ({"prompt": "x"}, {"image": ("a", bytes(20_001))}, "image", "image must be at most 20000 bytes, got 20001"),
        ({"prompt": "x"}, {"prompt": ("a", b"x"), "image": FILES["image"]}, "prompt", "prompt must be a text"),
        ({"prompt": "x", "n": ["1", "2"]}, {"image": FILES["image"]}, "n", "n must be a whole number, got ['1', '2']"),
    ],
)
def test_what_cannot_be_is_told_with_its_parameter(
    server: tuple[TestClient, FakeLink], data: dict[str, str], files: Any, param: str, message: str
) -> None:
    client, _ = server
    answer = client.post(EDITS, data=data, files=files)
    error = error_of(answer)
    assert error["message"].startswith(message)
    assert (answer.status_code, error["param"], error["code"]) == (400, param, "invalid_parameter")


def test_what_is_no_form_is_told_so(server: tuple[TestClient, FakeLink]) -> None:
    client, _ = server
    for content_type, status, message in (
        ("multipart/form-data", 400, "Content-Type multipart/form-data names no boundary"),
        ("multipart/form-data; boundary=a", 400, "the form has no end"),
        ("application/x-www-form-urlencoded", 415, "Content-Type must be application/json or multipart/form-data"),
    ):
        answer = client.post(EDITS, content=b"--a\r\n", headers={"Content-Type": content_type})
        assert (answer.status_code, error_of(answer)["message"][: len(message)]) == (status, message)
    form = client.post(GENERATIONS, data={"prompt": "x"}, files={"image": FILES["image"]})
    assert form.status_code == 415
    assert error_of(form)["message"] == f"Content-Type must be application/json: a form with a picture is for {EDITS}"
    answer = client.post(EDITS, data={"prompt": "x"}, files=FILES, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "it is a form, whose Content-Type your program knows" in error_of(answer)["message"]


def test_bodies_may_be_as_long_as_their_pictures_and_no_longer(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    large = b"\x89PNG" + bytes(LIMITS.max_image_bytes - 4)
    both = {"image": ("a", large), "mask": ("b", large)}
    assert client.post(EDITS, data={"prompt": "x"}, files=both).status_code == 200
    assert link.files == {"image": large, "mask": large}
    written = base64.b64encode(large).decode()
    for path in (EDITS, GENERATIONS):
        assert client.post(path, json={"prompt": "x", "image": written, "mask": written}).status_code == 200
        assert client.post(path, content=b" " * 100_000).status_code == 413
    assert client.post("/v1/loras", content=b" " * 2001).status_code == 413


def test_a_server_that_takes_no_pictures_says_so() -> None:
    with fake_server(engine=EngineConfig(image_input=False), max_body_bytes=5000) as (client, _):
        for answer in (
            client.post(EDITS, data={"prompt": "x"}, files={"image": FILES["image"]}),
            client.post(GENERATIONS, json={"prompt": "x", "image": URL}),
            client.post(EDITS, data={"prompt": "x"}, files={"image": ("a", bytes(100_000))}),
        ):
            error = error_of(answer)
            assert (answer.status_code, error["param"]) == (400, "image")
            assert "start the server without --no-image-input" in error["message"]


def test_nothing_of_a_picture_is_kept_once_it_was_sent(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    client.post(EDITS, data={"prompt": "x"}, files=FILES)
    assert link.files
    assert not link.sent


def test_what_is_logged_and_told_of_an_error_has_no_picture(server: tuple[TestClient, FakeLink]) -> None:
    client, _ = server
    for image in (URL + "?", {"file": [URL]}, [URL, URL]):
        answer = client.post(GENERATIONS, json={"prompt": "x", "image": image})
        assert answer.status_code == 400
        assert len(json.dumps(error_of(answer))) < 500


LARGE = 8_000_000  # bytes of a file


@pytest.mark.parametrize("kind", ["form", "json"])
def test_no_copy_of_a_picture_is_left_while_it_is_drawn_over(kind: str) -> None:
    waits, goes_on = threading.Event(), threading.Event()

    class Slow(FakeLink):
        async def follow(
            self, request: Generate, files: Mapping[str, bytes] = NO_FILES, *, progress: bool = True
        ) -> AsyncGenerator[Event, None]:
            events = super().follow(request, files, progress=progress)
            yield await anext(events)
            self.files = {}
            waits.set()
            await asyncio.to_thread(goes_on.wait)
            async for event in events:
                yield event

    def body() -> dict[str, Any]:
        file = os.urandom(LARGE)
        if kind == "form":
            return {"data": {"prompt": PROMPT}, "files": {"image": ("a", file)}}
        return {"json": {"prompt": PROMPT, "image": base64.b64encode(file).decode()}}

    with fake_server(link=Slow()) as (client, _):
        request = client.build_request("POST", EDITS, **body())
        sent = request.read()
        del request
        headers = {"Content-Type": form_type(sent) if kind == "form" else "application/json"}
        tracemalloc.start()
        try:
            sending = threading.Thread(target=lambda: client.post(EDITS, content=sent, headers=headers))
            sending.start()
            assert waits.wait(DEADLINE_S)
            wait_until(lambda: tracemalloc.get_traced_memory()[0] < LARGE // 2, "the picture's being let go")
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            goes_on.set()
        sending.join(DEADLINE_S)
    assert most > LARGE  # or else nothing was traced


def form_type(sent: bytes) -> str:
    boundary = sent[2 : sent.index(b"\r\n")].decode()
    return f"multipart/form-data; boundary={boundary}"
