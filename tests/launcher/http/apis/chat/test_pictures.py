"""A picture in the last message of a chat is drawn over."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.launcher.http.apis.fake_link import PROMPT, FakeLink, fake_server, png
from tests.launcher.http.http_requests import error_of

PATH = "/v1/chat/completions"
IMAGE = png()
URL = f"data:image/png;base64,{base64.b64encode(IMAGE).decode()}"
TEXT = {"type": "text", "text": PROMPT}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[TestClient, FakeLink]]:
    with fake_server() as server:
        yield server


def said(*parts: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}},
        {"type": "image_url", "image_url": URL},
        {"type": "input_image", "image_url": URL},
        {"type": "image", "image": URL},
    ],
)
def test_the_picture_of_the_last_message_is_drawn_over(server: tuple[TestClient, FakeLink], part: Any) -> None:
    client, link = server
    answer = client.post(PATH, json={"messages": said(TEXT, part)})
    assert answer.status_code == 200, answer.text
    assert (link.files, link.request.pictures, link.request.prompt) == ({"image": IMAGE}, ("image",), PROMPT)
    assert "drawn over (img2img)" in answer.json()["choices"][0]["message"]["content"]
    usage = answer.json()["usage"]
    assert usage["prompt_tokens"] >= usage["completion_tokens"] > 0  # the picture has as many as the image
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    answer = client.post(PATH, json={"messages": said(part, TEXT), "strength": 0.3, "stream": True})
    assert link.request.strength == 0.3
    assert "img2img" not in answer.text


def test_earlier_pictures_are_not_used_again(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    earlier = [
        *said(TEXT, {"type": "image_url", "image_url": {"url": URL}}),
        {"role": "assistant", "content": f"![a]({URL})", "images": [{"type": "image_url", "image_url": {"url": URL}}]},
    ]
    answer = client.post(PATH, json={"messages": [*earlier, {"role": "user", "content": PROMPT}]})
    assert answer.status_code == 200, answer.text
    assert (link.files, link.request.pictures) == ({}, ())


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"messages": said(TEXT, *[{"type": "image_url", "image_url": {"url": URL}}] * 2)}, "messages",
         "the last message must have one image at most: one is drawn over, and more, as references, are not taken"),
        ({"messages": said({"type": "image_url", "image_url": {"url": URL}})}, "messages", "the last message of role"),
        ({"messages": said(TEXT, {"type": "image_url", "image_url": {"url": "https://a/b.png"}})}, "image",
         "image is an address, and this server fetches nothing"),
        ({"messages": said(TEXT, {"type": "image_url", "image_url": {"url": URL}}), "image": URL}, "image",
         "image contradicts the last message, which has another"),
        *(
            ({"messages": said(TEXT, part)}, "messages", "the last message has an image without a picture that can be")
            for part in (
                {"type": "image_url"},
                {"type": "image_url", "image_url": None},
                {"type": "image_url", "image_url": {}},
                {"type": "input_image", "file_id": "file-1"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": URL}},
                {"type": "image", "data": URL, "mimeType": "image/png"},
            )
        ),
        ({"messages": said(TEXT, {"type": "file", "file": {}})}, "messages",
         "the last message must be of text and an image, got a part of type 'file'"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_over(
    server: tuple[TestClient, FakeLink], body: dict[str, Any], param: str, message: str
) -> None:
    client, _ = server
    answer = client.post(PATH, json=body)
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(message)
