"""A client of a front-end, for code without an event loop, or with one of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from typing import Any, TypeVar, Unpack

from engine.errors import Krea2Error, ServerError
from launcher.client.async_client import AsyncClient
from launcher.client.parameters import Parameters
from launcher.client.results import Event, Result
from launcher.messages.client_messages import Loras, StatusReply

T = TypeVar("T")
_CANCEL_S = 1.0  # for other calls to end, once they have been told to


class Client:
    """A client for code without an event loop, or with one of its own. Thread-safe.

    It runs an `AsyncClient`, `asynchronous`, in a thread.
    Raises `ServerError` if no server answers at `address` within `connect_timeout_s` seconds; with `connect` False,
    only when it is first used. `key`: this client's `.key_secret` file, for a server with keys.
    """

    def __init__(
        self,
        address: str,
        *,
        connect_timeout_s: float = 10.0,
        key: str | os.PathLike[str] | None = None,
        connect: bool = True,
    ) -> None:
        self.asynchronous = AsyncClient(address, connect_timeout_s=connect_timeout_s, key=key)
        self.address = address
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="krea2-client", daemon=True)
        self._thread.start()
        if connect:
            self.connect()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Find out whether a server answers, and close this client if none does; does nothing the second time."""
        try:
            self.run(self.asynchronous.connect())
        except BaseException:
            self.close()
            raise

    def generate(self, prompt: str, **parameters: Unpack[Parameters]) -> Result:
        """See `AsyncClient.generate`. Ctrl-C in this call cancels the request."""
        return self.run(self.asynchronous.generate(prompt, **parameters))

    def stream(self, prompt: str, **parameters: Unpack[Parameters]) -> Iterator[Event]:
        """See `AsyncClient.stream`. Leaving the loop over the events early cancels the request."""
        return self._iterate(self.asynchronous.stream(prompt, **parameters))

    def cancel(self, request_id: str) -> None:
        """See `AsyncClient.cancel`."""
        self.run(self.asynchronous.cancel(request_id))

    def load_lora(self, name: str, path: str | None = None, strength: float = 1.0) -> Loras:
        """See `AsyncClient.load_lora`."""
        return self.run(self.asynchronous.load_lora(name, path, strength))

    def unload_lora(self, name: str) -> Loras:
        """See `AsyncClient.unload_lora`."""
        return self.run(self.asynchronous.unload_lora(name))

    def loras(self) -> Loras:
        """See `AsyncClient.loras`."""
        return self.run(self.asynchronous.loras())

    def status(self) -> StatusReply:
        """What the server is doing."""
        return self.run(self.asynchronous.status())

    def metrics(self) -> bytes:
        """The server's metrics in Prometheus' text format."""
        return self.run(self.asynchronous.metrics())

    def ping(self) -> float:
        """Seconds to the server and back."""
        return self.run(self.asynchronous.ping())

    def close(self) -> None:
        """Cancel what is waiting and disconnect. The client cannot be used after that."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end_everything(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine over the asyncio client in this client's thread, and wait for it."""
        future = None
        try:
            with self._lock:  # so that `close` sees every call that has begun
                if self._closed:
                    work.close()
                    raise ServerError("the client was closed")
                future = asyncio.run_coroutine_threadsafe(work, self._loop)
            return future.result()
        except BaseException:
            if future is not None:
                future.cancel()
            raise

    async def _end_everything(self) -> None:
        await self.asynchronous.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:  # other threads' calls, which have an error to raise
            _, stuck = await asyncio.wait(others, timeout=_CANCEL_S)
            for task in stuck:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    def server_ended(self, error: Krea2Error) -> None:
        """Somebody knows that the server is gone, and why: calls raise that from now on."""
        with suppress(RuntimeError):  # closed already
            self._loop.call_soon_threadsafe(self.asynchronous.server_ended, error)

    def _iterate(self, events: AsyncIterator[Event]) -> Iterator[Event]:
        reading: asyncio.Task[Any] | None = None

        async def next_event() -> Event | None:
            nonlocal reading
            reading = asyncio.current_task()
            return await anext(events, None)

        async def close() -> None:
            # Ctrl-C may come between the start of a read and our waiting for it, and a stream that is being read cannot
            # be closed.
            if reading is not None and not reading.done():
                reading.cancel()
                await asyncio.wait((reading,), timeout=_CANCEL_S)
            if reading is None or reading.done():
                await events.aclose()  # type: ignore[attr-defined]

        try:
            while (event := self.run(next_event())) is not None:
                yield event
        finally:
            with suppress(ServerError):  # closed, and the stream with it
                self.run(close())
