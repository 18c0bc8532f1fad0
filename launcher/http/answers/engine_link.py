"""The link of an HTTP process to the front-end of its server, over ZMQ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress

from engine.errors import CancelledError, Krea2Error, ServerError
from launcher.client.async_client import NO_FILES, AsyncClient
from launcher.client.results import Event
from launcher.logs import log_event
from launcher.messages.client_messages import Generate, Loras, StatusReply
from launcher.messages.message_parts import Stage

_CONNECT_S = 2.0  # for the front-end to reply
_POLL_S = 0.1


class EngineLink:
    """The `Link` to the front-end at `address`, with the keys in the file `key`: a client of it, once it replies.

    name: what the front-end knows this process by. Requests are accepted once the first ranks have loaded. From then on
    the front-end decides: it warms up only while nothing waits, and keeps requests that come while it replaces ranks.
    """

    def __init__(self, address: str, key: str | None, name: bytes | None = None) -> None:
        self._address, self._key, self._name = address, key, name
        self._client: AsyncClient | None = None
        self._asked = asyncio.Event()  # whether ranks have loaded, once it replied
        self._has_loaded = False
        self._stage: Stage | None = None  # when it was asked last

    @asynccontextmanager
    async def connected(self, _: object) -> AsyncIterator[None]:
        """Connect, trying again until that works, and disconnect at the end: the life of an application."""
        connecting = asyncio.create_task(self._connect())
        yield
        connecting.cancel()
        await asyncio.wait((connecting,))
        if self._client is not None:
            await self._client.close()

    def _replying(self) -> AsyncClient:
        """Give the client. Raises `ServerError` until the front-end replies."""
        if self._client is None:
            raise ServerError("it is starting")
        return self._client

    async def loaded(self) -> AsyncClient:
        """Give the client. Raises `ServerError` until the ranks have loaded.

        If that is not known yet, the front-end is found and asked: it has the address printed then, and somebody comes
        at once.
        """
        if not self._has_loaded:
            with suppress(Krea2Error, TimeoutError):
                async with asyncio.timeout(_CONNECT_S):
                    await self._asked.wait()
                    await self.status()
        if not self._has_loaded:
            far = f", {self._stage.describe()}" if self._stage is not None and self._stage.total else ""
            raise ServerError(f"the engine is starting{far}: try again in a moment")
        return self._replying()

    async def follow(
        self, request: Generate, files: Mapping[str, bytes] = NO_FILES, *, progress: bool = True
    ) -> AsyncGenerator[Event, None]:
        """Follow a request: see `AsyncClient.follow`. A request that ends as if cancelled raises `ServerError`.

        For whoever hangs up stops following: so it was lost between our own processes, which is no client's doing.
        """
        async with aclosing((await self.loaded()).follow(request, files)) as events:
            try:
                async for event in events:
                    yield event
            except CancelledError as error:
                raise ServerError(f"the request was lost within the server: {error.message}") from None

    def end(self) -> None:
        """Fail what waits for the front-end, which has ended or will."""
        if self._client is not None:
            self._client.server_ended(ServerError("the server is being stopped, or has died"))

    async def status(self) -> StatusReply:
        """Ask what the front-end is doing, and remember whether ranks have loaded, or how far they are."""
        status = await self._replying().status()
        self._has_loaded |= status.device is not None
        self._stage = status.stage
        return status

    async def metrics(self) -> bytes:
        """Ask for the front-end's metrics. Raises `ServerError` until it replies."""
        return await self._replying().metrics()

    async def loras(self) -> Loras:
        """List the LoRAs. As what changes them, it raises `ServerError` until the ranks have loaded."""
        return await (await self.loaded()).loras()

    async def load_lora(self, name: str, path: str | None, strength: float) -> Loras:
        """Load a LoRA: see `AsyncClient.load_lora`."""
        return await (await self.loaded()).load_lora(name, path, strength)

    async def unload_lora(self, name: str) -> Loras:
        """Let requests choose a LoRA no more: see `AsyncClient.unload_lora`."""
        return await (await self.loaded()).unload_lora(name)

    async def _connect(self) -> None:
        """Connect, and wait until the ranks have loaded."""
        while not self._has_loaded:
            try:
                if self._client is None:
                    client = AsyncClient(self._address, connect_timeout_s=_CONNECT_S, key=self._key, name=self._name)
                    await client.connect()
                    self._client = client
                await self.status()
            except Krea2Error as error:
                if self._client is None and not isinstance(error, ServerError):  # which says that nobody replies yet
                    log_event("the front-end cannot be reached", level="error", message=error.message)
            if self._client is not None:
                self._asked.set()
            await asyncio.sleep(_POLL_S)
