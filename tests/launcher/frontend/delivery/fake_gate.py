"""Filters without processes: they judge by the red of a picture's first pixel and by words, when a test lets them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import FilterUnavailableError, Krea2Error
from launcher.client.async_client import AsyncClient
from launcher.filters.checks import Judged
from launcher.filters.protocol import Picture, Prompt
from launcher.filters.verdicts import ALLOW, BLOCK, BLUR, Finding, blocked_error
from launcher.frontend.delivery.metrics import FilterMetrics
from tests.launcher.fake_ranks import DEADLINE_S, Fakes, fake_engine

WORD = "forbidden"


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.005)


@dataclass
class FakeGate:
    """Blocks prompts with `WORD`, uploads and images whose red is among `blocked`; in place of `blurred` ones there are
    grey pixels. held: kinds, and reds, that wait until they are let go on; broken: kinds of which nothing can be said.
    """

    metrics: FilterMetrics
    blocked: set[int] = field(default_factory=set)
    blurred: set[int] = field(default_factory=set)
    held: set[str | int] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    up: asyncio.Event = field(default_factory=asyncio.Event)
    start_error: Krea2Error | None = None
    not_ready: str | None = None
    checks_images: bool = True
    image_s: float = 0.0
    prompts: list[tuple[Prompt, str]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    closed: bool = False
    _let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        await self.up.wait()
        if self.start_error is not None:
            raise self.start_error

    async def check_prompt(self, prompt: Prompt, uploads: Sequence[Picture], *, moderation: str) -> Judged:
        self.prompts.append((prompt, moderation))
        self.pictures += uploads
        await self._wait("prompt")
        if WORD in prompt.text:
            raise blocked_error((Finding("fake", "prompt", BLOCK, "words", 1.0),), "prompt")
        for upload in uploads:
            if (judged := self._judge(upload)).action == BLOCK:
                raise blocked_error(judged.findings, "image")
        return Judged()

    async def check_image(self, picture: Picture, *, moderation: str) -> Judged:
        self.pictures.append(picture)
        await self._wait(picture.kind, picture.rgb[0])
        return self._judge(picture)

    def close(self) -> None:
        self.closed = True

    def go_on(self, *held: str | int) -> None:
        """Let these go on that were held."""
        self.held -= {*held}
        self._let_go.set()

    def seen(self, kind: str) -> list[Picture]:
        return [picture for picture in self.pictures if picture.kind == kind]

    async def _wait(self, kind: str, red: int | None = None) -> None:
        try:
            while self.held & {kind, red}:
                self._let_go.clear()
                await self._let_go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(kind)
            raise
        if kind in self.broken:
            raise FilterUnavailableError("content filter fake did not answer", retry_after_s=3.0)

    def _judge(self, picture: Picture) -> Judged:
        red = picture.rgb[0]
        if red in self.blocked:
            return Judged((Finding("fake", picture.kind, BLOCK, "red", 0.9),), BLOCK)
        if red in self.blurred:
            finding = Finding("fake", picture.kind, BLUR, "red", 0.6)
            return Judged((finding,), BLUR, b"\x80" * len(picture.rgb))
        return Judged((), ALLOW)


@asynccontextmanager
async def filtered_engine(
    run_folder: Path, gate: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Fakes, AsyncClient, FakeGate]]:
    """A front-end with ranks that compute nothing and filters, which are up and have these attributes; and a client."""
    gates: list[FakeGate] = []

    def make_gate(metrics: FilterMetrics) -> FakeGate:
        gates.append(FakeGate(metrics, **(gate or {})))
        gates[0].up.set()
        return gates[0]

    async with fake_engine(run_folder, make_gate=make_gate, **options) as fakes, AsyncClient(fakes.address) as client:
        yield fakes, client, gates[0]
    assert gates[0].closed
