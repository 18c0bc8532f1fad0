"""Requests to either server, and what is read of their answers."""

from __future__ import annotations

import base64
import io
import json
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

from tests.launcher.http_servers import PATH, PROMPT
from tests.launcher.ray.servers import APP, MAX_BODY_BYTES

EDITS, CHAT, TXT2IMG, IMG2IMG = (
    "/v1/images/edits",
    "/v1/chat/completions",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
)
BODY = {"prompt": PROMPT, "size": "96x96", "steps": 2, "seed": 1}
LONG = {"prompt": PROMPT, "size": "256x256", "steps": 200, "n": 10}  # minutes
SOON_S = 10.0  # which is over before that is drawn, and not before it was refused
SAID = [{"role": "user", "content": PROMPT}]
A1111 = {"prompt": PROMPT, "width": 96, "height": 96, "steps": 2, "seed": 1, "cfg_scale": 1}


def pixels(image: str | bytes) -> np.ndarray:
    """Of a file, as bytes, base64 or a data URL."""
    if isinstance(image, str):
        image = base64.b64decode(image.rpartition(",")[2], validate=True)
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def images(answer: httpx.Response) -> list[np.ndarray]:
    """The pictures of an answer of OpenAI's images API."""
    assert answer.status_code == 200, answer.text
    return [pixels(image["b64_json"]) for image in answer.json()["data"]]


def png(side: int = 96, mode: str = "RGB", colour: Any = (30, 60, 200)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, side), colour).save(file, "png")
    return file.getvalue()


def half_mask(side: int = 96) -> bytes:
    """White where it is drawn anew: on the left."""
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (0, 0, side // 2, side))
    file = io.BytesIO()
    mask.save(file, "png")
    return file.getvalue()


def data_url(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


class Refused(NamedTuple):
    """A request that is refused, and how. headers: an empty one is not sent."""

    status: int
    code: str
    method: str
    path: str
    param: str | None = None
    headers: dict[str, str] = {}  # noqa: RUF012 of a tuple, which nobody changes
    json: Any = None
    content: bytes | None = None
    files: Any = None
    data: Any = None

    @property
    def sent(self) -> dict[str, Any]:
        """What httpx is to send."""
        fields = {"json": self.json, "content": self.content, "files": self.files, "data": self.data}
        return {"headers": self.headers} | {name: value for name, value in fields.items() if value is not None}


JSON = {"Content-Type": "application/json"}
FILE = ("a.png", png(), "image/png")
BAD, GONE = "invalid_parameter", "not_found"
REFUSED = [
    Refused(400, BAD, "POST", PATH, content=b"{", headers=JSON),
    Refused(400, BAD, "POST", PATH, content=b'{"prompt": "\xff"}', headers=JSON),
    Refused(400, BAD, "POST", PATH, content=b"", headers=JSON),
    Refused(400, BAD, "POST", PATH, "prompt", json={}),
    Refused(400, BAD, "POST", PATH, "steps", json=BODY | {"steps": 0}),
    Refused(400, BAD, "POST", PATH, "steps", json=BODY | {"steps": 10_000}),
    Refused(400, BAD, "POST", PATH, "num_inference_steps", json={"prompt": PROMPT, "num_inference_steps": -1}),
    Refused(400, BAD, "POST", PATH, "size", json=BODY | {"size": "7x9"}),
    Refused(400, BAD, "POST", PATH, "n", json=BODY | {"n": 100}),
    Refused(400, BAD, "POST", PATH, "seed", json=BODY | {"seed": "x"}),
    Refused(400, BAD, "POST", PATH, "colour", json=BODY | {"colour": "red"}),
    Refused(400, BAD, "POST", PATH, "output_format", json=BODY | {"output_format": "gif"}),
    Refused(400, BAD, "POST", PATH, "partial_images", json=BODY | {"partial_images": 2}),
    Refused(400, BAD, "POST", PATH, "timeout_s", json=BODY | {"timeout_s": -1}),
    Refused(400, BAD, "POST", PATH, "image", json=BODY | {"image": "data:image/png;base64,AAAA"}),
    Refused(400, BAD, "POST", PATH, "Idempotency-Key", json=BODY, headers={"Idempotency-Key": "x" * 300}),
    Refused(400, BAD, "POST", PATH, "loras", json=BODY | {"loras": ["nowhere"]}),
    Refused(400, BAD, "POST", EDITS, "image", json={"prompt": PROMPT}),
    Refused(400, BAD, "POST", EDITS, "image", data={"prompt": PROMPT}, files={"mask": FILE}),
    Refused(400, BAD, "POST", EDITS, "prompt", files={"image": FILE}),
    Refused(400, BAD, "POST", EDITS, "image", data={"prompt": PROMPT}, files={"image": ("a.png", b"GIF89a")}),
    Refused(400, BAD, "POST", CHAT, "messages", json={"messages": []}),
    Refused(400, BAD, "POST", TXT2IMG, "width", json=A1111 | {"width": 7}),
    Refused(400, BAD, "POST", IMG2IMG, "init_images", json=A1111),
    Refused(401, "invalid_api_key", "GET", "/v1/models", headers={"Authorization": "Bearer wrong"}),
    Refused(401, "invalid_api_key", "POST", PATH, json=BODY, headers={"Authorization": ""}),
    Refused(401, "invalid_api_key", "GET", "/metrics", headers={"Authorization": "Basic wrong"}),
    Refused(401, "invalid_api_key", "POST", TXT2IMG, json=A1111, headers={"Authorization": "Basic YTpi"}),
    Refused(403, "host_not_allowed", "GET", "/v1/models", headers={"Host": "evil.example"}),
    Refused(403, "origin_not_allowed", "POST", PATH, json=BODY, headers={"Origin": "https://evil.example"}),
    Refused(404, GONE, "GET", "/nothing"),
    Refused(404, GONE, "GET", "/page/../app.py"),
    Refused(404, GONE, "POST", "/images/generations", json=BODY),
    Refused(404, GONE, "GET", "/v1/images/files/nothing.png"),
    Refused(404, "model_not_found", "POST", PATH, "model", json=BODY | {"model": "nobody"}),
    Refused(404, "model_not_found", "GET", "/v1/models/nobody", "model"),
    Refused(405, "method_not_allowed", "GET", PATH),
    Refused(405, "method_not_allowed", "DELETE", "/health"),
    Refused(405, "method_not_allowed", "PUT", "/openapi.json"),
    Refused(405, "method_not_allowed", "PATCH", "/page/index.html"),
    Refused(
        413, "body_too_large", "POST", CHAT.replace("chat/completions", "loras"), content=bytes(MAX_BODY_BYTES + 1)
    ),
    Refused(413, "body_too_large", "POST", "/sdapi/v1/options", content=bytes(2 * MAX_BODY_BYTES), headers=JSON),
    Refused(415, "unsupported_media_type", "POST", PATH, data={"prompt": PROMPT}),
    Refused(415, "unsupported_media_type", "POST", TXT2IMG, content=b"a", headers={"Content-Type": "text/plain"}),
    Refused(429, "queue_full", "POST", PATH, "timeout_s", json=LONG | {"timeout_s": SOON_S}),
]


def refused(answer: httpx.Response) -> dict[str, Any]:
    """What an error says, but for the request's id, which its header has too."""
    (request_id,) = answer.headers.get_list("x-request-id")
    told: dict[str, Any] = answer.json()
    error = told["error"]
    assert error.pop("request_id") == request_id
    assert set(error) == {"message", "type", "param", "code"}
    return told


def events(text: str) -> list[tuple[str, Any]]:
    """Name and data of each server-sent event; of chats, which have no names, an empty name."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append(
            (lines.get("event", ""), lines["data"] if lines["data"] == "[DONE]" else json.loads(lines["data"]))
        )
    return found


BROWSER = {
    "Origin": APP,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
}
