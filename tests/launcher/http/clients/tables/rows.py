"""What a row of the tables is, and what clients read of an answer."""

from __future__ import annotations

import base64
import http.client
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
from PIL import Image

from tests.launcher.fake_ranks import DEADLINE_S
from tests.launcher.http_servers import PROMPT

MODEL = "dall-e-3"  # one of the names under which the tests serve the model
KEY = "a-key"  # which clients send where the server has none
SECRET = "sk-secret"  # of servers that have one
GENERATIONS = "/v1/images/generations"
TXT2IMG = "/sdapi/v1/txt2img"
CHAT = "/v1/chat/completions"

OPENAI_PYTHON = {
    "Accept": "application/json",
    "User-Agent": "OpenAI/Python 2.8.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Retry-Count": "0",
    "Authorization": f"Bearer {KEY}",
}
OPENAI_NODE = {
    "Accept": "application/json",
    "User-Agent": "OpenAI/JS 5.10.1",
    "X-Stainless-Lang": "js",
    "X-Stainless-Timeout": "600",
    "Authorization": f"Bearer {KEY}",
}
AXIOS = {
    "Accept": "application/json, text/plain, */*",
    "Accept-Encoding": "gzip, compress, deflate, br",
    "User-Agent": "axios/1.8.3",
}
AIOHTTP = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate, br", "User-Agent": "Python/3.11 aiohttp/3.12.15"}
NODE_FETCH = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate, br", "User-Agent": "node-fetch"}


class Got(NamedTuple):
    """An answer, and the address of the server."""

    answer: httpx.Response
    url: str

    @property
    def json(self) -> Any:
        assert self.answer.status_code == 200, self.answer.text
        return self.answer.json()


Reads = Callable[[Got], None]


@dataclass(frozen=True)
class Row:
    """A request of a client.

    read: the file of its source that sends it, with the beginning of the commit where that is known.
    body: JSON, bytes, or None. reads: what it does with the answer.
    """

    client: str
    does: str
    read: str
    reads: Reads
    body: Any = None
    method: str = "POST"
    path: str = GENERATIONS
    headers: Mapping[str, str] = field(default_factory=dict)

    def send(self, url: str) -> Got:
        """Send it as it is: only Host and the length are added. With an empty Content-Type it has none."""
        body = self.body if self.body is None or isinstance(self.body, bytes) else json.dumps(self.body).encode()
        headers = dict(self.headers)
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            headers["Content-Length"] = str(len(body))
        address = httpx.URL(url)
        connection = http.client.HTTPConnection(address.host, address.port, timeout=DEADLINE_S)
        try:
            connection.putrequest(self.method, self.path, skip_accept_encoding=True)
            for name, value in headers.items():
                if (name, value) != ("Content-Type", ""):
                    connection.putheader(name, value)
            connection.endheaders(body)
            raw = connection.getresponse()
            told = {"reason_phrase": raw.reason.encode()}
            return Got(httpx.Response(raw.status, headers=raw.getheaders(), content=raw.read(), extensions=told), url)
        finally:
            connection.close()


def drawn(size: tuple[int, int] = (192, 128), mode: str = "RGB", colour: object = (0, 0, 255)) -> bytes:
    """A picture that clients send: a PNG file of one colour, of a size that the demo was made for."""
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "png")  # type: ignore[arg-type]
    return file.getvalue()


def picture(data: bytes, *, kind: str | None = "PNG", seed: int | None = None) -> Image.Image:
    """Decode a picture, which must be whole, of this kind or any, and that of this seed if the ranks are fakes."""
    image = Image.open(io.BytesIO(data))
    image.load()
    assert kind in (None, image.format)
    assert image.mode == "RGB"
    if seed is not None and image.format == "PNG" and image.getcolors(1) is not None:  # as fakes draw
        assert image.getpixel((0, 0))[0] == seed % 256  # type: ignore[index]
    return image


def b64(kind: str = "PNG", count: int = 1, size: tuple[int, int] | None = None) -> Reads:
    """Reads `data[].b64_json`."""

    def read(got: Got) -> None:
        assert isinstance(got.json["created"], int)
        assert len(got.json["data"]) == count
        for image in got.json["data"]:
            assert "url" not in image  # which many clients would fetch instead
            shown = picture(base64.b64decode(image["b64_json"], validate=True), kind=kind, seed=image["seed"])
            assert size in (None, shown.size)

    return read


def links(kind: str = "PNG", count: int = 1) -> Reads:
    """Reads `data[].url`, and fetches that without a key."""

    def read(got: Got) -> None:
        assert len(got.json["data"]) == count
        for image in got.json["data"]:
            assert "b64_json" not in image
            fetched = httpx.get(image["url"], timeout=DEADLINE_S)
            assert fetched.headers["content-type"] == f"image/{kind.lower()}"
            assert image["url"].endswith(f".{kind.lower()}")  # of which some make the file's name
            picture(fetched.content, kind=kind)

    return read


def warned(reads: Reads, *words: str) -> Reads:
    """Reads so, and is told with these words what was not done as it asked."""

    def read(got: Got) -> None:
        reads(got)
        told = " ".join(got.json["warnings"])
        for word in words:
            assert word in told

    return read


def sentence(status: int, *words: str) -> Reads:
    """Shows `error.message`, with these words."""

    def read(got: Got) -> None:
        assert got.answer.status_code == status, got.answer.text
        assert got.answer.headers["content-type"] == "application/json"
        error = got.answer.json()["error"]
        assert isinstance(error["type"], str)  # as the Vercel AI SDK wants it, or it shows the status alone
        assert isinstance(error["code"], str)
        assert isinstance(error["param"], str | None)
        assert len(error["message"].split()) >= 3
        for word in words:
            assert word in error["message"]

    return read


def models(*names: str) -> Reads:
    """Lists `data[].id`."""

    def read(got: Got) -> None:
        assert got.json["object"] == "list"
        assert {*names} <= {model["id"] for model in got.json["data"]}
        assert all(model["object"] == "model" for model in got.json["data"])

    return read


def prompt(**more: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, **more}


def form(*files: tuple[str, tuple[str, bytes, str]], **data: str) -> tuple[bytes, str]:
    """A multipart body and its Content-Type. files: names of fields, and of each the file's name, content and type."""
    request = httpx.Request("POST", "http://a", data=data, files=list(files))
    return request.read(), request.headers["Content-Type"]
