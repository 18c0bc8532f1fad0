"""The client for code without an event loop: Ctrl-C whenever it comes."""

from __future__ import annotations

import asyncio
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
