"""A client of a front-end, for code without an event loop, or with one of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack

from engine.errors import Krea2Error, ServerError
from launcher.client.async_client import AsyncClient, Parameters
from launcher.client.results import Event

P = ParamSpec("P")
T = TypeVar("T")
_CANCEL_S = 1.0  # seconds for other calls to end, once they have been told to


def _in_thread(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    """Make the same method of `Client`, which runs this one in the client's thread and waits for it."""

    @wraps(method)
    def call(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client.run(method(client.asynchronous, *args, **kwargs))

    return call


class Client:
    """A client for code without an event loop, or with one of its own. Thread-safe.

    It runs an `AsyncClient`, `asynchronous`, in a thread, and its methods wait for those of the same name. Ctrl-C in
    `generate`, or leaving the loop over the events of `stream`, cancels the request.

    Raises `ServerError` if no server answers at `address` within `connect_timeout_s` seconds; with `connect` False,
    only when it is first used. `key`: this client's `.key_secret` file, for a server with keys. `name`: by which a
    front-end knows the process that started it.
    """

    def __init__(
        self,
        address: str,
        *,
        connect_timeout_s: float = 10.0,
        key: str | os.PathLike[str] | None = None,
        connect: bool = True,
        name: bytes | None = None,
    ) -> None:
        self.asynchronous = AsyncClient(address, connect_timeout_s=connect_timeout_s, key=key, name=name)
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

    def stream(self, prompt: str, **parameters: Unpack[Parameters]) -> Iterator[Event]:
        """Make images and follow them: see `AsyncClient.stream`."""
        return self._iterate(self.asynchronous.stream(prompt, **parameters))

    generate = _in_thread(AsyncClient.generate)
    cancel = _in_thread(AsyncClient.cancel)
    load_lora = _in_thread(AsyncClient.load_lora)
    unload_lora = _in_thread(AsyncClient.unload_lora)
    loras = _in_thread(AsyncClient.loras)
    status = _in_thread(AsyncClient.status)
    metrics = _in_thread(AsyncClient.metrics)
    ping = _in_thread(AsyncClient.ping)

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
        """Let calls raise this error from now on: the server is gone."""
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
