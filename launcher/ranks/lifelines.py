"""Lifelines of ranks that torchrun started: connections from which each side learns at once that the other is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress


async def hold_lifelines(path: str, on_lost: Callable[[int], None]) -> None:
    """Hold the front-end's ends of this machine's lifelines, at a unix socket; when cancelled, break them: ranks end.

    on_lost: called with the number of a rank whose lifeline has broken. A zmq socket would notice a death later: its
    own thread hears of it first.
    """
    lifelines: list[asyncio.StreamWriter] = []

    async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lifelines.append(writer)
        with suppress(OSError, asyncio.CancelledError):  # Python 3.11 complains of a connection that was cancelled
            if rank := await reader.read(1):  # all that is ever said
                with suppress(OSError):
                    await reader.read()
                on_lost(rank[0])

    server = await asyncio.start_unix_server(follow, path)
    try:
        await asyncio.Event().wait()
    finally:
        server.close()
        for lifeline in lifelines:
            lifeline.close()
