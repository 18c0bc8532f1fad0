"""The client for code without an event loop: Ctrl-C whenever it comes."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import Any

import pytest

from launcher import Client
from launcher.client import loop_thread
from tests.launcher.processes import PATIENCE_S


def test_ctrl_c_just_after_a_read_of_a_stream_has_begun_closes_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_thread, "CANCEL_S", PATIENCE_S)
    waits, closed = threading.Event(), threading.Event()

    async def events(*_: object, **__: object) -> AsyncIterator[str]:
        try:
            yield "first"
            waits.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    run = asyncio.run_coroutine_threadsafe

    def interrupted(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Future[Any]:
        monkeypatch.setattr(loop_thread.asyncio, "run_coroutine_threadsafe", run)
        run(work, loop)
        assert waits.wait(PATIENCE_S)
        raise KeyboardInterrupt

    with Client("ipc:///nonexistent/krea2", connect=False) as client:
        monkeypatch.setattr(client.asynchronous, "stream", events)
        stream = client.stream("a red circle")
        assert next(stream) == "first"  # type: ignore[comparison-overlap]
        monkeypatch.setattr(loop_thread.asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        assert closed.is_set()


class Interrupted(BaseException):
    pass


def test_a_signal_that_interrupts_no_wait_is_heard_of_nevertheless(request: pytest.FixtureRequest) -> None:
    """As one that comes just before the wait: Python knows of it, but the thread that would handle it waits already."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    request.addfinalizer(lambda: signal.signal(signal.SIGUSR1, before))
    before = signal.signal(signal.SIGUSR1, interrupt)

    async def wait_for_another_thread() -> None:
        await asyncio.sleep(0.1)  # until this test's thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        await asyncio.sleep(PATIENCE_S)

    with Client("ipc:///nonexistent/krea2", connect=False) as client, pytest.raises(Interrupted):
        client.run(wait_for_another_thread())
