"""Pictures in JSON are read as programs send them, within limits, and nothing is fetched."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from engine.errors import ArgumentError
from launcher.http.uploads.pictures import SENT, Pictures, base64_bytes, read

FILE = bytes(range(256))
TEXT = base64.b64encode(FILE).decode()
URL = f"data:image/png;base64,{TEXT}"


@pytest.mark.parametrize(
    "sent",
    [
        FILE,
        TEXT,
        TEXT.rstrip("="),
        base64.urlsafe_b64encode(FILE).decode(),
        base64.encodebytes(FILE).decode(),
        URL,
        f" {URL}\n",
        URL.replace("png", "svg+xml"),
        URL.replace("image/png", ""),
        URL.replace("image/png;", "image/png;charset=utf-8;name=a.png;"),
        URL.replace("data:image/png;base64", "DATA:IMAGE/PNG;BASE64"),
        URL.replace("image/png", "application/octet-stream"),
        [URL],
        {"url": URL},
        {"image_url": URL},
        {"image_url": {"url": URL, "detail": "high"}},
        {"type": "input_image", "image_url": URL},
        [{"type": "image_url", "image_url": {"url": URL}}],
        {"b64_json": TEXT},
    ],
)
def test_a_picture_in_each_way_in_which_programs_send_it(sent: Any) -> None:
    assert read("image", sent, 256) == FILE


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ("https://a.example/a.png", "image is an address, and this server fetches nothing: send the picture itself"),
        ({"url": " HTTP://a"}, "image is an address, and this server fetches nothing"),
        ("file:///etc/passwd", "image is an address"),
        ("//a.example/a.png", "image is an address"),
        ({"file_id": "file-1"}, "image names a file of OpenAI's, and this server fetches nothing"),
        ([URL, URL], "image must be one: one picture is drawn over, and more, as references, are not taken yet, got 2"),
        ([], "image must be one: a picture, got 0"),
        ("data:image/png,%89PNG", "image must be a PNG, JPEG or WebP file as base64 or as a data URL"),
        ("data:text/html;base64,aaaa", "image must be a PNG, JPEG or WebP file as base64 or as a data URL"),
        ("data:" + "x" * 5000, "image must be a PNG, JPEG or WebP file as base64 or as a data URL"),
        ("fox.p", "image is no base64: it must be a PNG, JPEG or WebP file"),
        (
            "../my/fox.PNG",
            "image is a file's name, '../my/fox.PNG', and no file: send what is in it, with curl as -F im",
        ),
        ("aaaaa", "image is no base64"),
        ("data:image/png;base64,", "image is empty"),
        (5, "image must be a PNG, JPEG or WebP file as base64"),
        ({}, "image must be a PNG, JPEG or WebP file as base64"),
        ([[[[[URL]]]]], "image must be a PNG, JPEG or WebP file as base64"),
        (bytes(257), "image must be a file of at most 256 bytes, got 257"),
        (base64.b64encode(bytes(257)).decode(), "image must be a file of at most 256 bytes, got 257"),
        ("a" * 1_000_000, "image must be a file of at most 256 bytes, got 750000"),
    ],
)
def test_what_is_no_picture_is_told_what_is(sent: Any, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read("image", sent, 256)
    assert caught.value.message.startswith(message)
    assert caught.value.parameter == "image"
    assert len(caught.value.message) < 250


def test_a_file_within_the_limit_is_within_it_as_a_data_url() -> None:
    for size in (1, 2, 3, 1000, 50_000_000):
        assert base64_bytes(size) >= len("data:image/jpeg;base64,") + 4 * -(-size // 3)


def test_nobody_else_holds_a_picture_that_was_taken() -> None:
    pictures = Pictures()
    given: dict[str, Any] = {"init_images": [URL], "mask": "", "prompt": "x", "extra_body": {"image": URL}}
    plain: dict[str, Any] = {"image": [URL], "mask": "", "prompt": "x"}
    pictures.take(plain, given)
    assert plain == {"image": SENT, "prompt": "x"}
    assert given == {"init_images": SENT, "mask": "", "prompt": "x", "extra_body": {"image": SENT}}
    assert "image" in pictures
    assert asyncio.run(pictures.files(256)) == {"image": FILE}
    assert not pictures
