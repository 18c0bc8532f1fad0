"""Finds the pictures in bytes, however these are packed, and says which of them show the same."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

_BEGINNINGS = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{64,}")
_CHUNK = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")  # between two chunks of an HTTP answer
_DATA = re.compile(rb"^data: (\{.*\})$", re.MULTILINE)  # of a server-sent event
_SIDE = 16  # to which pictures are brought before they are compared
_ALIKE = 30.0  # of 255: how far pictures that show the same may be from each other on average


@dataclass(frozen=True)
class Found:
    """A picture in bytes that left. rgb: (height, width, 3), uint8; lossless: PNG."""

    rgb: np.ndarray[Any, Any]
    lossless: bool

    @property
    def small(self) -> np.ndarray[Any, Any]:
        """What it shows: (16, 16, 3), whatever its size."""
        return reduced(self.rgb)


def reduced(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bring a picture to the size in which pictures are compared."""
    image = Image.fromarray(rgb).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32)


def alike(small: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Say whether two pictures, brought to the same size, show the same."""
    return float(np.abs(small - other).mean()) < _ALIKE


def pictures_in(data: bytes) -> list[Found]:
    """Find all pictures in what a server sent over a connection: as they are or as base64, in JSON or in events."""
    found: dict[bytes, Found] = {}
    whole = _CHUNK.sub(b"", data)
    for view in {data, whole}:
        for start in _BEGINNINGS.finditer(view):
            _decode(view[start.start() :], found)
    text = whole.replace(rb"\/", b"/")
    pieces = (piece for event in _DATA.findall(whole) for piece in _contents(json.loads(event)))
    for view in {data, text, "".join(pieces).encode()}:
        for run in _BASE64.finditer(view):
            for offset in range(4):
                decoded = _from_base64(run[0][offset:])
                for start in _BEGINNINGS.finditer(decoded):
                    _decode(decoded[start.start() :], found)
    return [*found.values()]


def _contents(event: dict[str, Any]) -> Iterator[str]:
    for choice in event.get("choices", ()):
        content = choice["delta"].get("content")
        if isinstance(content, str):
            yield content


def _from_base64(text: bytes) -> bytes:
    text = text.translate(bytes.maketrans(b"-_", b"+/"))
    return base64.b64decode(text + b"A" * (-len(text) % 4))


def _decode(file: bytes, found: dict[bytes, Found]) -> None:
    """Add the picture with which these bytes begin, if they do."""
    try:
        with Image.open(io.BytesIO(file)) as image:
            lossless = image.format == "PNG"
            rgb = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return
    found.setdefault(rgb.tobytes() + repr(rgb.shape).encode(), Found(rgb, lossless))
