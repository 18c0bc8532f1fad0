"""Asks for many pictures by all ways out, and checks what left the server."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from launcher.requests.image_files import encode_preview
from tests.launcher.filters.ways_out.planted import BLOCKED_FROM, FORBIDDEN, Seen, redness_of, seen_in
from tests.launcher.filters.ways_out.recorder import Recorder, recorded
from tests.launcher.filters.ways_out.search import Found, alike, reduced
from tests.launcher.filters.ways_out.ways import Ask, BlockedError, Door, Way
from tests.launcher.processes import PATIENCE_S, connect_async

WIRE_NOISE = 12.0  # of 255: what JPEG and WebP change of an image on average at most


@asynccontextmanager
async def recorded_doors(http: str, rpc: str) -> AsyncIterator[tuple[Door, list[Recorder]]]:
    """Clients of a server, and what it sends them."""
    async with recorded(http) as web, recorded(rpc) as direct:
        plain = {"Accept-Encoding": "identity"}
        limits = httpx.Limits(max_connections=None)
        url = f"http://127.0.0.1:{web.port}"
        async with (
            httpx.AsyncClient(base_url=url, headers=plain, timeout=PATIENCE_S, limits=limits) as client,
            connect_async(f"tcp://127.0.0.1:{direct.port}") as rpc_client,
        ):
            yield Door(client, rpc_client), [web, direct]


async def answers(
    door: Door, asks: Sequence[tuple[Way, Ask]], *, at_once: int
) -> dict[tuple[Way, Ask], list[bytes] | None]:
    """Ask for all, `at_once` at the same time. Returns the files of each, None for what was blocked."""
    free = asyncio.Semaphore(at_once)

    async def ask_one(way: Way, ask: Ask) -> list[bytes] | None:
        async with free:
            try:
                return await way(door, ask)
            except BlockedError:
                return None

    got = await asyncio.gather(*(ask_one(way, ask) for way, ask in asks))
    return dict(zip(asks, got, strict=True))


def pixels_of(file: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def check_all_that_left(found: Sequence[Found], folder: Path, received: Sequence[bytes]) -> Counter[str]:
    """Check pictures that were found in all bytes that left: none shows what was blocked, and each is one that the
    filter was shown and let pass; and what clients got is among them, so that the search finds what there is.

    folder: what the planted filter was shown. Returns how many of each kind it was shown, blocked ones as `KIND!`.
    """
    shown = seen_in(folder)
    passed, blocked = (
        Shown([each for each in shown if not each.blocked]),
        Shown([each for each in shown if each.blocked]),
    )
    for picture in found:
        assert redness_of(picture.rgb) < BLOCKED_FROM
        assert not blocked.show(picture)
        assert passed.have(picture)
    left = {picture.rgb.tobytes() for picture in found}
    for file in received:
        assert pixels_of(file).tobytes() in left
    assert not any(FORBIDDEN in each.prompt for each in shown if each.kind != "upload")
    return Counter(each.kind + "!" * each.blocked for each in shown)


class Shown:
    """Pictures that a filter was shown."""

    def __init__(self, pictures: Sequence[Seen]) -> None:
        rgbs = {(each.rgb.shape, each.rgb.tobytes()): each.rgb for each in pictures}.values()
        self._small = [reduced(rgb) for rgb in rgbs]
        sent = [*rgbs, *(_as_preview(each.rgb) for each in pictures if each.kind == "preview")]
        self._exact = {(rgb.shape, rgb.tobytes()) for rgb in sent}
        self._by_size: dict[tuple[int, ...], list[np.ndarray[Any, Any]]] = {}
        for rgb in rgbs:
            self._by_size.setdefault(rgb.shape, []).append(rgb)

    def show(self, picture: Found) -> bool:
        """Whether one of them shows the same, in whatever size."""
        return any(alike(small, picture.small) for small in self._small)

    def have(self, picture: Found) -> bool:
        """Whether it is one of them, or almost, if the file of an image is not lossless."""
        if (picture.rgb.shape, picture.rgb.tobytes()) in self._exact:
            return True
        of_size = () if picture.lossless else self._by_size.get(picture.rgb.shape, ())
        return any(np.abs(picture.rgb.astype(int) - rgb).mean() < WIRE_NOISE for rgb in of_size)


def _as_preview(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What becomes of the noise of a preview in its JPEG file."""
    return pixels_of(encode_preview(rgb.tobytes(), rgb.shape[1], rgb.shape[0]))
