"""What the HTTP application asks of the engine behind it, however that is reached."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from launcher.client.async_client import NO_FILES
from launcher.client.results import Event
from launcher.messages.client_messages import Generate, Loras, StatusReply

ASK_S = 2.0  # for an engine to say how it is


class Link(Protocol):
    """The way to one engine, or to many that are one for those who ask.

    `EngineLink` is to the front-end of the same server, `RayLink` to all that a cluster runs. Every method may raise
    `ServerError` while there is no engine that replies.
    """

    def connected(self, app: object, /) -> AbstractAsyncContextManager[None]:
        """Connect, and disconnect at the end: the life of an application. Does not wait for an engine."""
        ...

    def follow(
        self, request: Generate, files: Mapping[str, bytes] = NO_FILES, *, progress: bool = True
    ) -> AsyncGenerator[Event, None]:
        """Follow a request: see `AsyncClient.follow`. Closing the iterator cancels it.

        progress: whether `Progress` is of use; a link to which it costs something leaves it out otherwise.
        """
        ...

    async def status(self) -> StatusReply:
        """Ask what the engine is doing."""
        ...

    async def metrics(self) -> bytes:
        """Ask for its metrics, in Prometheus' text format."""
        ...

    async def loras(self) -> Loras:
        """List the LoRAs that requests may choose, and those that are part of the weights."""
        ...

    async def load_lora(self, name: str, path: str | None, strength: float) -> Loras:
        """Load a LoRA: see `AsyncClient.load_lora`. Raises `ConflictError` if all that there will be are there."""
        ...

    async def unload_lora(self, name: str) -> Loras:
        """Let requests choose a LoRA no more: see `AsyncClient.unload_lora`. Raises `ConflictError`, as above."""
        ...

    def end(self) -> None:
        """Fail what waits for the engine, since this process ends."""
        ...
