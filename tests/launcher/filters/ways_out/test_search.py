"""The search that the other tests here rely on finds pictures wherever bytes have them."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.launcher.filters.ways_out.search import alike, pictures_in, reduced

RGB = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


def file(kind: str = "png") -> bytes:
    written = io.BytesIO()
    Image.fromarray(RGB).save(written, kind)
    return written.getvalue()


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"\r\n".join(b"%x\r\n%b" % (len(part), part) for part in parts) + b"\r\n0\r\n\r\n"


def in_pieces(text: str) -> bytes:
    pieces = (text[start : start + 1000] for start in range(0, len(text), 1000))
    events = ({"choices": [{"delta": {"content": piece}}]} for piece in pieces)
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)


TEXT = base64.b64encode(file())
PACKED = {
    "as it is": b"HTTP/1.1 200 OK\r\n\r\n" + file(),
    "two in a row": file() + file("jpeg") + b"\xff",
    "WebP": b"\4" + file("webp") + b"\4",
    "JSON": b'{"data":[{"b64_json":"%b"}]}' % TEXT,
    "JSON with slashes escaped": b'{"a":"%b"}' % TEXT.replace(b"/", rb"\/"),
    "a data URL": b'{"url":"data:image/png;base64,%b"}' % TEXT,
    "base64 for URLs": base64.urlsafe_b64encode(file()),
    "base64 that begins before": b"abc" + TEXT,
    "chunks": chunked(file(), 777),
    "chunks of JSON": chunked(b'{"data":[{"b64_json":"%b"}]}' % TEXT, 333),
    "pieces of a chat": in_pieces(f"![x](data:image/png;base64,{TEXT.decode()})"),
}


@pytest.mark.parametrize("packed", PACKED)
def test_a_picture_is_found(packed: str) -> None:
    found = pictures_in(PACKED[packed])
    assert {picture.lossless for picture in found} == ({False, True} if "two" in packed else {packed != "WebP"})
    for picture in found:
        assert picture.rgb.shape == RGB.shape
        assert not picture.lossless or np.array_equal(picture.rgb, RGB)
        assert alike(picture.small, reduced(RGB))


def test_pictures_are_told_apart_whatever_their_size() -> None:
    large = np.repeat(np.repeat(RGB, 3, axis=0), 3, axis=1)
    assert alike(reduced(large), reduced(RGB))
    assert not alike(reduced(255 - large // 2), reduced(RGB))
    assert pictures_in(b"\x89PNG\r\n\x1a\nRIFF0000WEBP\xff\xd8\xff" + b"A" * 100) == []
