"""Lifelines of ranks that torchrun started: connections from which each side learns at once that the other is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress


class Lifelines:
    """Holds the front-end's ends of the lifelines of this machine's ranks, over a unix socket in the run folder.

    A zmq socket would notice a death later: its own thread hears of it first.
    """

    def __init__(self, on_lost: Callable[[int], None]) -> None:
        """on_lost: called with the number of a rank whose lifeline has broken."""
        self._on_lost = on_lost
        self._server: asyncio.Server | None = None
        self._lifelines: list[asyncio.StreamWriter] = []

    async def accept(self, path: str) -> None:
        """Listen at `path`, until `close`."""
        self._server = await asyncio.start_unix_server(self._follow, path)

    def close(self) -> None:
        """Stop listening, and break all lifelines: their ranks end."""
        if self._server is not None:
            self._server.close()
        for lifeline in self._lifelines:
            lifeline.close()

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lifelines.append(writer)
        with suppress(OSError):
            if rank := await reader.read(1):  # all that is ever said
                with suppress(OSError):
                    await reader.read()
                self._on_lost(rank[0])
