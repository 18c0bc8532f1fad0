"""The ways by which pictures leave a server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

from engine.errors import ModerationBlockedError
from launcher.client.async_client import AsyncClient
from launcher.client.results import ImageFile
from tests.launcher.http_servers import PATH

EDITS, CHAT, A1111 = "/v1/images/edits", "/v1/chat/completions", "/sdapi/v1/"


@dataclass(frozen=True)
class Ask:
    """A request. upload: the ground of the picture to draw over, for ways that take one."""

    prompt: str
    seed: int
    steps: int
    side: int
    format: str = "png"
    count: int = 1
    upload: tuple[int, int, int] = (20, 40, 200)

    @property
    def openai(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt, "seed": self.seed, "steps": self.steps, "size": f"{self.side}x{self.side}",
            "n": self.count, "output_format": self.format,
        }  # fmt: skip

    @property
    def picture(self) -> np.ndarray[Any, Any]:
        """What is drawn over: of one colour, with a white square in the middle."""
        rgb = np.full((self.side, self.side, 3), self.upload, np.uint8)
        quarter = self.side // 4
        rgb[quarter:-quarter, quarter:-quarter] = 255
        return rgb

    @property
    def around(self) -> np.ndarray[Any, Any]:
        """A mask of all but the middle of that picture."""
        return np.where(self.picture.min(axis=-1) == 255, 0, 255).astype(np.uint8)


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def base64_of(pixels: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(png(pixels)).decode()


class BlockedError(Exception):
    """The answer was that filters have blocked it."""


@dataclass
class Door:
    """The clients by which to ask, whose connections are recorded."""

    http: httpx.AsyncClient
    rpc: AsyncClient

    async def post(self, path: str, body: Mapping[str, Any] | None = None, **more: Any) -> httpx.Response:
        answer = await self.http.post(path, json=body, **more)
        if answer.status_code != 200:
            _fail(answer.json()["error"])
        return answer


def _fail(error: Mapping[str, Any]) -> None:
    assert error["code"] == "moderation_blocked", error
    assert error["type"] == "image_generation_user_error"
    assert error["category"] in ("red", "word")
    raise BlockedError


async def as_base64(door: Door, ask: Ask) -> list[bytes]:
    answer = await door.post(PATH, ask.openai)
    return [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]


async def as_other_engines(door: Door, ask: Ask) -> list[bytes]:
    """With the names that SGLang, vLLM-Omni and diffusers have for parameters."""
    renamed = {"num_inference_steps": ask.steps, "num_images_per_prompt": ask.count}
    body = {"prompt": ask.prompt, "seed": ask.seed, "width": ask.side, "height": ask.side, **renamed}
    answer = await door.post(PATH, body)
    return [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]


async def as_urls(door: Door, ask: Ask) -> list[bytes]:
    answer = await door.post(PATH, ask.openai | {"response_format": "url"})
    return [(await door.http.get(image["url"])).content for image in answer.json()["data"]]


async def as_events(door: Door, ask: Ask) -> list[bytes]:
    return _completed(await door.post(PATH, ask.openai | {"stream": True, "partial_images": 2}))


async def as_the_page(door: Door, ask: Ask) -> list[bytes]:
    body = ask.openai | {"stream": True, "progress": True, "preview_every": 1}
    return _completed(await door.post(PATH, body))


async def as_the_page_edits(door: Door, ask: Ask) -> list[bytes]:
    """A form, of whose picture all but the middle is drawn anew."""
    fields = ask.openai | {"stream": "true", "progress": "true", "preview_every": 1}
    files = {"image": ("a.png", png(ask.picture)), "mask": ("b.png", png(ask.around))}
    return _completed(await door.post(EDITS, data={name: str(value) for name, value in fields.items()}, files=files))


async def as_an_edit(door: Door, ask: Ask) -> list[bytes]:
    """All of the picture is drawn anew."""
    answer = await door.post(EDITS, ask.openai | {"image": base64_of(ask.picture), "strength": 1})
    return [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]


async def as_chat(door: Door, ask: Ask) -> list[bytes]:
    answer = await door.post(CHAT, _chat(ask))
    return _shown(_said(answer))


async def as_chat_with_urls(door: Door, ask: Ask) -> list[bytes]:
    answer = await door.post(CHAT, _chat(ask) | {"response_format": "url"})
    urls = re.findall(r"\((http[^)]*)\)", _said(answer))
    return [(await door.http.get(url)).content for url in urls]


async def as_streamed_chat(door: Door, ask: Ask) -> list[bytes]:
    answer = await door.post(CHAT, _chat(ask) | {"stream": True})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    for event in events:
        if "error" in event:
            _fail(event["error"])
    return _shown("".join(choice["delta"].get("content", "") for event in events for choice in event["choices"]))


async def as_automatic1111(door: Door, ask: Ask) -> list[bytes]:
    return await _watched(door, "txt2img", _a1111(ask))


async def as_automatic1111_edits(door: Door, ask: Ask) -> list[bytes]:
    pictures = {"init_images": [base64_of(ask.picture)], "denoising_strength": 1.0, "include_init_images": True}
    return await _watched(door, "img2img", _a1111(ask) | pictures)


async def _watched(door: Door, name: str, body: Mapping[str, Any]) -> list[bytes]:
    """Draw, and look at the newest preview meanwhile."""
    drawn = asyncio.create_task(door.post(A1111 + name, body))
    while not drawn.done():
        await door.http.get(A1111 + "progress")
    return [base64.b64decode(image) for image in (await drawn).json()["images"]]


async def by_rpc(door: Door, ask: Ask) -> list[bytes]:
    files = []
    try:
        async for event in door.rpc.stream(ask.prompt, **_rpc(ask), preview_every=1):
            if isinstance(event, ImageFile):
                files.append(event.file)
    except ModerationBlockedError as error:
        assert error.category in ("red", "word")  # noqa: PT017
        raise BlockedError from None
    return files


async def by_rpc_twice(door: Door, ask: Ask) -> list[bytes]:
    """Asked again with the same key, the server answers what it has answered."""
    answers: list[list[bytes] | str] = []
    for _ in range(2):
        try:
            result = await door.rpc.generate(ask.prompt, **_rpc(ask), idempotency_key=f"{ask.prompt} {ask.seed}")
            answers.append(result.files)
        except ModerationBlockedError as error:
            answers.append(error.message)
    assert answers[0] == answers[1]
    if isinstance(answers[0], str):
        raise BlockedError
    return answers[0]


Way = Callable[[Door, Ask], Awaitable[list[bytes]]]
WAYS: tuple[Way, ...] = (
    as_base64, as_urls, as_events, as_the_page, as_the_page_edits, as_an_edit, as_chat, as_chat_with_urls,
    as_streamed_chat, as_automatic1111, as_automatic1111_edits, as_other_engines, by_rpc, by_rpc_twice,
)  # fmt: skip
EDITING = (as_the_page_edits, as_an_edit, as_automatic1111_edits)
PLAIN = (as_other_engines,)  # with no format


def _completed(answer: httpx.Response) -> list[bytes]:
    files = []
    for line in answer.text.splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            _fail(event["error"])
        if event["type"].endswith(".completed"):
            files.append(base64.b64decode(event["b64_json"]))
    return files


def _chat(ask: Ask) -> dict[str, Any]:
    own = {name: value for name, value in ask.openai.items() if name != "prompt"}
    return {"messages": [{"role": "user", "content": ask.prompt}], **own}


def _said(answer: httpx.Response) -> str:
    return "\n".join(choice["message"]["content"] for choice in answer.json()["choices"])


def _shown(content: str) -> list[bytes]:
    return [base64.b64decode(text) for text in re.findall(r"\(data:image/\w+;base64,([^)]*)\)", content)]


def _a1111(ask: Ask) -> dict[str, Any]:
    return {
        "prompt": ask.prompt, "seed": ask.seed, "steps": ask.steps, "width": ask.side, "height": ask.side,
        "batch_size": ask.count, "output_format": ask.format, "cfg_scale": 1,
    }  # fmt: skip


def _rpc(ask: Ask) -> dict[str, Any]:
    return {
        "seed": ask.seed, "steps": ask.steps, "width": ask.side, "height": ask.side, "num_images": ask.count,
        "output_format": ask.format,
    }  # fmt: skip
