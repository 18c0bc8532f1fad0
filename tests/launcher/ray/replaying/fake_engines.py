"""Engines of a cluster that do as a test says, behind the real `Fleet`, routed as the real router does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from launcher.messages.client_messages import Accepted, Failed, Generate, Image, Preview, Progress, Reply
from launcher.messages.encoding import decode_request
from launcher.ray.fleet import Fleet
from launcher.ray.replay import Replay, ReplicaLostError
from launcher.ray.replaying.retelling import Usual
from launcher.ray.replaying.silence import ALIVE_S
from launcher.ray.wire import decode_hints, encode_replies

Replies = Sequence[tuple[Reply, bytes]] | bytes  # of a chunk, or what stands for one
STEPS = 4  # of each image
USUAL = Usual(8, 1024, 1024, 0.0)


@dataclass
class Drawn:
    """A request as an engine got it. closed: it was cancelled, or its end was read."""

    engine: str
    request: Generate
    files: list[bytes]
    progress: bool
    avoid: tuple[str, ...]
    key: str | None
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    # ---- what an engine may say

    def accepted(self, attempt: int = 1, position: int = 0, estimated_s: float = 1.0) -> tuple[Reply, bytes]:
        """Say that it is queued."""
        return Accepted(
            request_id=self.request.request_id,
            position=position,
            estimated_s=estimated_s,
            attempt=attempt,
            warnings=("a warning",),
        ), b""

    def step(self, step: int, attempt: int = 1) -> tuple[Reply, bytes]:
        """Say that so many steps are done."""
        steps = STEPS * self.request.num_images
        name = self.request.request_id
        return Progress(request_id=name, step=step, steps=steps, estimated_s=1.0, attempt=attempt), b""

    def preview(self, index: int, step: int, attempt: int = 1) -> tuple[Reply, bytes]:
        """Show what an image may become."""
        name = self.request.request_id
        told = Preview(request_id=name, index=index, step=step, steps=STEPS, attempt=attempt)
        return told, f"preview {index} {step}".encode()

    def image(self, index: int, attempt: int = 1, **more: Any) -> tuple[Reply, bytes]:
        """Say that an image is there; its file is made of its seed, as a picture is."""
        assert self.request.seed is not None
        seed = self.request.seed + index
        fields = {
            "request_id": self.request.request_id, "index": index, "num_images": self.request.num_images, "seed": seed,
            "width": 64, "height": 64, "output_format": "png", "warnings": ("a warning",), "attempt": attempt,
            "timings": {"queue": 0.25, "denoise": 0.5, "total": 0.75},
        }  # fmt: skip
        return Image(**{**fields, **more}), file_of(seed)

    def failed(self, code: str, **more: Any) -> tuple[Reply, bytes]:
        """Say why there are no images."""
        return Failed(request_id=self.request.request_id, code=code, message=f"it is {code}", **more), b""

    def whole(self, attempt: int = 1) -> list[tuple[Reply, bytes]]:
        """All that an engine says of a request that goes well."""
        count = self.request.num_images
        steps = [self.step(step + 1, attempt) for step in range(STEPS * count)]
        return [self.accepted(attempt), *steps, *(self.image(index, attempt) for index in range(count))]


Act = Callable[[Drawn], AsyncGenerator[Replies, None]]


class FakeCluster:
    """Engines by name, each with what it does for a request. drawn: all requests that came to any."""

    def __init__(self, **engines: Act) -> None:
        clock = asyncio.get_running_loop().time
        self.fleet = Fleet(clock, chance=lambda: 0.0)
        self.engines = dict(engines)
        self.leaving: set[str] = set()
        self.drawn: list[Drawn] = []
        self.unrouted = 0
        self._changed = asyncio.Event()
        self.replay = Replay(self._send, self.fleet, USUAL, clock)
        self.tell()

    def tell(self) -> None:
        """Have the router know which engines take requests."""
        self.fleet.replicas_are([name for name in self.engines if name not in self.leaving])
        self._changed.set()

    def leave(self, *names: str) -> None:
        """Have engines take no more requests, and go on with what they have."""
        self.leaving.update(names)
        self.tell()

    def add(self, **engines: Act) -> None:
        """Have more engines."""
        self.engines |= engines
        self.tell()

    def at(self, *engines: str) -> list[Drawn]:
        """The requests that came to these."""
        return [drawn for drawn in self.drawn if drawn.engine in engines]

    async def _send(
        self, header: bytes, files: list[bytes], progress: bool, hints: bytes
    ) -> AsyncGenerator[bytes, None]:
        request, told = decode_request(header), decode_hints(hints)
        assert isinstance(request, Generate)
        assert request.request_id == told.ticket
        assert len(request.pictures) == len(files)
        name = await self._route(hints)
        drawn = Drawn(name, request, files, progress, told.avoid, told.key)
        self.drawn.append(drawn)
        act = self.engines[name](drawn)
        try:
            async for replies in act:
                yield replies if isinstance(replies, bytes) else encode_replies(replies)
                await asyncio.sleep(0)
        finally:
            await act.aclose()
            drawn.closed.set()

    async def _route(self, hints: bytes) -> str:
        told = decode_hints(hints)
        self.unrouted += 1
        try:
            while not (names := [name for name in self.engines if self.fleet.takes(name)]):
                self._changed.clear()
                await self._changed.wait()
        finally:
            self.unrouted -= 1
        name = self.fleet.rank(names, told)[0]
        self.fleet.sent(told.ticket, name, told.work)
        return name


# ---- what engines do


async def well(drawn: Drawn) -> AsyncGenerator[Replies, None]:
    """Draw all images."""
    for reply in drawn.whole():
        yield [reply]


def refuses(code: str, **more: Any) -> Act:
    """Answer with an error at once."""
    return partial(_says, [lambda drawn: drawn.failed(code, **more)])


def dies_after(count: int) -> Act:
    """Say so many replies, and die."""
    return partial(_dies, count)


def waits_after(count: int) -> Act:
    """Say so many replies, and then only that it is there."""
    return partial(_waits, count)


def hangs_after(count: int) -> Act:
    """Say so many replies, and nothing more."""
    return partial(_hangs, count)


def says(*replies: Callable[[Drawn], tuple[Reply, bytes]]) -> Act:
    """Say these, and end."""
    return partial(_says, replies)


async def _dies(count: int, drawn: Drawn) -> AsyncGenerator[Replies, None]:
    for reply in drawn.whole()[:count]:
        yield [reply]
    raise ReplicaLostError("the actor died")


async def _waits(count: int, drawn: Drawn) -> AsyncGenerator[Replies, None]:
    for reply in drawn.whole()[:count]:
        yield [reply]
    while True:
        await asyncio.sleep(ALIVE_S)
        yield []


async def _hangs(count: int, drawn: Drawn) -> AsyncGenerator[Replies, None]:
    for reply in drawn.whole()[:count]:
        yield [reply]
    await asyncio.Event().wait()


async def _says(
    replies: Iterable[Callable[[Drawn], tuple[Reply, bytes]]], drawn: Drawn
) -> AsyncGenerator[Replies, None]:
    for reply in replies:
        yield [reply(drawn)]


def file_of(seed: int) -> bytes:
    """The file of an image with this seed."""
    return f"image of seed {seed}".encode()
