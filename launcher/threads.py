"""Does what may hang, such as reading from a disk, in a thread that nobody waits for at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(work: Callable[[], T]) -> T:
    """Do it as `asyncio.to_thread` does, but in a thread of its own, which keeps no process from ending."""
    return await begin_in_own_thread(work)


def begin_in_own_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Begin to do it there."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # so that nobody who stops waiting can cancel it

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(done)
