"""The clients that `launch` and `launch_async` give, with which their engine ends."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import zmq

from engine.errors import Krea2Error
from launcher.client.async_client import AsyncClient
from launcher.client.client import Client
from launcher.client.loop_thread import close_forgotten
from launcher.messages import client_messages as messages
from launcher.setup.engine_process import EngineProcess
from launcher.threads import in_own_thread

T = TypeVar("T")


class EngineClient(Client):
    """A client of an engine that this program has started: closing it stops the engine."""

    def __init__(self, engine: EngineProcess) -> None:
        super().__init__(engine.address, connect=False, name=engine.config.client_name)
        self._engine = engine
        engine.stopping.callback(self.thread.close)
        self._forgotten.detach()
        self._forgotten = self._when_forgotten(engine.close)

    def __repr__(self) -> str:
        return _describe(self._engine, closed=self.thread.closed)

    def close(self) -> None:
        """Cancel what is waiting and stop the engine; doing so again does nothing."""
        super().close()
        self._engine.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine over the asyncio client in this client's thread, and wait for it."""
        if self.thread.closed:
            return super().run(work)
        with self._engine.explaining():
            return super().run(work)


class AsyncEngineClient(AsyncClient):
    """The same in an event loop, which is not kept waiting while the engine stops."""

    def __init__(self, engine: EngineProcess) -> None:
        super().__init__(engine.address, name=engine.config.client_name)
        self._engine = engine
        self._end: Krea2Error | None = None  # of the engine, by itself
        self._on_end: Callable[[Krea2Error], None] | None = None
        self._forgotten = weakref.finalize(self, close_forgotten, engine.close)
        self._forgotten.atexit = False
        loop, known = asyncio.get_running_loop(), weakref.ref(self)
        engine.on_end(lambda error: _tell(loop, known, error))

    def __repr__(self) -> str:
        return _describe(self._engine, closed=self._ended)

    def call_at_end(self, on_end: Callable[[Krea2Error], None]) -> None:
        """Call back in the loop when the engine has ended by itself, or soon if it has."""
        self._on_end = on_end
        if self._end is not None:
            asyncio.get_running_loop().call_soon(self.engine_ended, self._end)

    def engine_ended(self, error: Krea2Error) -> None:
        """Fail everything that waits, and what is asked from now on; tell who wants to know, for the first time."""
        if self._ended:
            return
        self._engine.explain(error)
        self._end = error
        self.server_ended(error)
        if self._context is not None:
            self._socket.set(zmq.LINGER, 0)  # closing it waits for no farewell
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(error)

    async def close(self) -> None:
        """Cancel what is waiting and stop the engine, also if this is cancelled; doing so again does nothing."""
        self._forgotten.detach()
        await super().close()
        await in_own_thread(self._engine.close)

    def _error_of(self, failed: messages.Failed) -> Krea2Error:
        error = super()._error_of(failed)
        self._engine.explain(error)
        return error


def _tell(loop: asyncio.AbstractEventLoop, known: weakref.ref[AsyncEngineClient], error: Krea2Error) -> None:
    def tell() -> None:
        client = known()
        if client is not None:
            client.engine_ended(error)

    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(tell)


def _describe(engine: EngineProcess, *, closed: bool) -> str:
    config = engine.config.engine
    model, ranks = Path(config.model or "demo").name, config.ranks
    state = "stopped" if closed else f"{ranks} rank{'s' if ranks > 1 else ''}, {engine.address}"
    return f"<Client of an engine of its own: {model}, {state}>"
