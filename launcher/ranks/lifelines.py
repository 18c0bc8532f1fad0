"""Lifelines of ranks that torchrun started: connections from which each side learns at once that the other is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Lifelines:
    """The front-end's end of those on this machine, over a unix socket in the run folder."""

    def __init__(self, on_lost: Callable[[int], None]) -> None:
        self._on_lost = on_lost
        self._server: asyncio.Server | None = None
        self._lifelines: list[_Lifeline] = []

    async def accept(self, path: str) -> None:
        """Listen, until `close`."""

        def accept() -> _Lifeline:
            self._lifelines.append(_Lifeline(self._on_lost))
            return self._lifelines[-1]

        self._server = await asyncio.get_running_loop().create_unix_server(accept, path)

    def close(self) -> None:
        """Stop listening, and break all lifelines: their ranks end."""
        if self._server is not None:
            self._server.close()
        for lifeline in self._lifelines:
            if lifeline.transport is not None:
                lifeline.transport.close()


class _Lifeline(asyncio.Protocol):
    """One rank's connection, on which it says its number and then nothing more."""

    def __init__(self, on_lost: Callable[[int], None]) -> None:
        self._on_lost = on_lost
        self._rank: int | None = None
        self.transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._rank = data[0]

    def connection_lost(self, _: Exception | None) -> None:
        if self._rank is not None:
            self._on_lost(self._rank)
