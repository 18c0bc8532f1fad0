"""The form that the page sends with a picture, and how large its answer is."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from PIL import Image, ImageOps

_FILES = ("image", "mask")
_TEXTS = ("prompt", "negative_prompt", "output_format", "strength_steps", "cache", "reason", "contact", "request_id")


def read_form(content_type: str, body: bytes) -> dict[str, Any]:
    """Read multipart/form-data: files as they are, and what is no text as JSON, as bodies of JSON have it."""
    boundary = content_type.partition("boundary=")[2].strip('"')
    form: dict[str, Any] = {}
    for part in body.split(f"--{boundary}".encode())[1:-1]:
        head, _, value = part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n")
        (name,) = re.findall(r' name="([^"]+)"', head.decode())
        assert name not in form
        assert (b"filename=" in head) == (name in _FILES)
        form[name] = value if name in _FILES else value.decode() if name in _TEXTS else json.loads(value)
    return form


def size_of(body: dict[str, Any]) -> tuple[int, int]:
    """The size of the answer to a request: as it says, or that of its picture and what is added around it."""
    if "image" not in body or "width" in body:
        return body["width"], body["height"]
    width, height = turned(body["image"]).size
    added = body.get("outpaint", {})
    return width + added.get("left", 0) + added.get("right", 0), height + added.get("top", 0) + added.get("bottom", 0)


def turned(file: bytes) -> Image.Image:
    """A picture as its EXIF says that it stands."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(file)))


def made_for_of(body: dict[str, Any], loras: list[dict[str, Any]]) -> dict[str, Any]:
    """What the LoRAs of a request without steps were made for; empty for nothing."""
    chosen = [lora["name"] for lora in body.get("loras", ()) if "steps" not in body]
    return next((lora["made_for"] for lora in loras if lora["name"] in chosen and "made_for" in lora), {})


def told_of(body: dict[str, Any], warnings: list[str] | None, made_for: dict[str, Any]) -> dict[str, Any]:
    """What comes with an image. warnings: of the request, which come with its last one; None for another."""
    told = {} if warnings is None else {"timings": {"total": 1.25}, "warnings": warnings}
    computed = {"block_evaluations": 27, "of": 48, "blocks": 6, "steps": [[6, 6], [0, 6]]}
    told |= {"made_for": made_for} if made_for else {}
    return told | ({"computed": computed} if "cache" in body else {})
