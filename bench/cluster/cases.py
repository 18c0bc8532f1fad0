"""The requests that are compared: each is sent to a server and read to its end, and says what the engine took of it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
import numpy as np
from PIL import Image as PIL

from bench.serve.traffic import PROMPTS, RequestFailed

SMALL, STEPS = 64, 2  # pixels of a side; denoise steps
EDITED = 96  # the least side that the demo draws over a picture
STREAM_STEPS, PREVIEWS = 20, 3
EDIT_BYTES = 200_000  # of the picture that an edit brings along, about
LARGE = 1024  # pixels of a side
AT_ONCE = 8
_IMAGES, _EDITS = "/v1/images/generations", "/v1/images/edits"


@dataclass(frozen=True)
class Case:
    """One kind of request.

    ask: sends the request of this number, reads the answer to its end, checks it, and returns the seconds that the
    engine counted itself, 0 where there are none; raises `RequestFailed` and httpx' errors. share: pairs of it for a
    pair of pictures. bar_s: what the median of the differences may be, None where nothing was set.
    """

    name: str
    what: str
    ask: Callable[[httpx.AsyncClient, int], Awaitable[float]]
    share: float
    bar_s: float | None = None


async def _health(client: httpx.AsyncClient, _: int) -> float:
    _checked(await client.get("/health"))
    return 0.0


async def _picture(client: httpx.AsyncClient, number: int) -> float:
    body = _checked(await client.post(_IMAGES, json=_parameters(number))).json()
    return _engine_s(body, SMALL)


async def _stream(client: httpx.AsyncClient, number: int) -> float:
    parameters = _parameters(number) | {
        "steps": STREAM_STEPS,
        "stream": True,
        "progress": True,
        "partial_images": PREVIEWS,
    }
    events: list[dict[str, Any]] = []
    async with client.stream("POST", _IMAGES, json=parameters) as response:
        if response.status_code != httpx.codes.OK:
            await response.aread()
            _checked(response)
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    if not events or events[-1].get("type") != "image_generation.completed":
        raise RequestFailed("stream", f"a stream of {len(events)} events ended with {events[-1:]}"[:300])
    last = events[-1]
    return _engine_s({"data": [last], "timings": last["timings"]}, SMALL)


async def _edit(client: httpx.AsyncClient, number: int) -> float:
    files = {"image": ("noise.png", _noise(SMALL * 4, EDIT_BYTES // (SMALL * 4) ** 2), "image/png")}
    parameters = {name: str(value) for name, value in (_parameters(number, EDITED) | {"strength": 1.0}).items()}
    body = _checked(await client.post(_EDITS, data=parameters, files=files)).json()
    return _engine_s(body, EDITED)


async def _large(client: httpx.AsyncClient, number: int) -> float:
    """Of noise, all but a part of which stays: a large file each way, and little to compute between."""
    files = {
        "image": ("noise.png", _noise(LARGE, 3), "image/png"),
        "mask": ("mask.png", _mask(LARGE, EDITED // 2), "image/png"),
    }
    parameters = _parameters(number, EDITED) | {"mask_crop": EDITED // 4, "mask_feather": 0}
    body = _checked(await client.post(_EDITS, data={k: str(v) for k, v in parameters.items()}, files=files)).json()
    return _engine_s(body, LARGE)


async def _at_once(client: httpx.AsyncClient, number: int) -> float:
    await asyncio.gather(*(_picture(client, AT_ONCE * number + one) for one in range(AT_ONCE)))
    return 0.0  # they share the engine's time


CASES = {
    case.name: case
    for case in (
        Case("health", "GET /health", _health, 2.0),
        Case("picture", f"a picture of {SMALL}², {STEPS} steps", _picture, 1.0, bar_s=0.020),
        Case("stream", f"a stream of {STREAM_STEPS} steps, {PREVIEWS} previews", _stream, 0.5, bar_s=0.060),
        Case("edit", f"an edit with a picture of {EDIT_BYTES // 1000} kB", _edit, 0.5),
        Case("large", f"an edit of {LARGE}², 3 MB each way", _large, 0.25),
        Case("at-once", f"{AT_ONCE} pictures at once", _at_once, 0.5),
    )
}


def _parameters(number: int, side: int = SMALL) -> dict[str, Any]:
    """Of a request with a prompt of its own, which no cache knows the first time."""
    prompt = f"{PROMPTS[number % len(PROMPTS)]}, number {number}"
    return {"prompt": prompt, "size": f"{side}x{side}", "steps": STEPS, "seed": number}


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code != httpx.codes.OK:
        raise RequestFailed(f"HTTP {response.status_code}", f"HTTP {response.status_code}: {response.text[:300]}")
    return response


def _engine_s(body: dict[str, Any], side: int) -> float:
    """Raises `RequestFailed` for an answer without its image."""
    try:
        file = base64.b64decode(body["data"][0]["b64_json"], validate=True)
        with PIL.open(io.BytesIO(file)) as image:
            size = image.size
        total_s = float(body["timings"]["total"])
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise RequestFailed("bad answer", f"an answer without its image: {error!r}") from None
    if size != (side, side):
        raise RequestFailed("wrong size", f"asked for {side}x{side}, got {size[0]}x{size[1]}")
    return total_s


@cache
def _noise(side: int, channels: int) -> bytes:
    """A PNG file of about side² · channels bytes, which nothing makes smaller."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, channels), dtype=np.uint8)
    return _png(PIL.fromarray(pixels))


@cache
def _mask(side: int, hole: int) -> bytes:
    mask = PIL.new("L", (side, side), 0)
    mask.paste(255, (0, 0, hole, hole))
    return _png(mask)


def _png(image: PIL.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()
