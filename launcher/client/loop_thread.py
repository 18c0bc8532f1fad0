"""A thread with an event loop, in which an `AsyncClient` works for programs that have no loop, or one of their own."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from contextlib import suppress
from typing import Any, TypeVar

from engine.errors import Krea2Error, ServerError
from launcher.awake import TICK_S
from launcher.client.async_client import AsyncClient

CANCEL_S = 1.0  # seconds for other calls to end, once they have been told to

T = TypeVar("T")


class LoopThread:
    """Runs what is asked of a client in a thread of its own, until it is closed.

    A process that was forked from the one that made it has no such thread: there it runs nothing, and closes nothing.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._process = os.getpid()
        self.closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="krea2-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine over the client, and wait for it."""
        if os.getpid() != self._process:
            work.close()
            raise ServerError("this process was forked from the client's own: it needs one of its own, Client(address)")
        future = None
        try:
            with self._lock:  # so that `close` sees every call that has begun
                if self.closed:
                    work.close()
                    raise ServerError("the client was closed")
                future = asyncio.run_coroutine_threadsafe(work, self._loop)
            # Python hears of a signal, as of Ctrl-C, between two instructions, or when it interrupts a wait. One that
            # comes after the last instruction before a wait is heard of at the wait's end.
            while not wait((future,), timeout=TICK_S).done:
                pass
            return future.result()
        except BaseException:
            if future is not None:
                future.cancel()
            raise

    def close(self) -> None:
        """Cancel what is waiting, disconnect and end the thread."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if self.closed:
                return
            self.closed = True
        asyncio.run_coroutine_threadsafe(self._end_everything(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def server_ended(self, error: Krea2Error) -> None:
        """Let calls raise this error from now on: the server is gone."""
        with suppress(RuntimeError):  # closed already
            self._loop.call_soon_threadsafe(self._client.server_ended, error)

    async def _end_everything(self) -> None:
        await self._client.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:  # other threads' calls, which have an error to raise
            _, stuck = await asyncio.wait(others, timeout=CANCEL_S)
            for task in stuck:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)


def close_forgotten(close: Callable[[], None]) -> None:
    """Close what nobody refers to any more, in a thread, since this one may be one that closing waits for.

    When the interpreter ends, threads do, and processes of ours end with it.
    """
    if not sys.is_finalizing():
        threading.Thread(target=close, name="krea2-close").start()
