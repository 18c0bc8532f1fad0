"""Connections of the HTTP process: how long one may take to send a request's head, and how many there can be."""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0  # seconds for a request's line and headers to arrive


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose next request has no complete head within `HEAD_S`.

    uvicorn by itself waits forever for the first one.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _time_head(self) -> None:
        """Start or stop the time, which runs from a connection's beginning or a head's first byte until its end."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def allow_many_connections() -> None:
    """Raise this process' limit of open files as far as the system allows: each connection is a file."""
    with suppress(ValueError, OSError):  # macOS calls unlimited what it does not grant
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
