"""How slow and how many the connections of clients may be."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from launcher.messages.connections.open_files import limit, room_for_connections

HEAD_S = 20.0  # seconds for a request's line and headers to arrive
_RESERVE = 48  # files that this process has open, and opens, beside its clients' connections


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose next request has no complete head within `HEAD_S`, and one that there is no room for.

    uvicorn by itself waits forever for the first one, and accepts connections as long as the process may open files.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > room_for_connections(reserve=_RESERVE + backlog()):
            transport.abort()
        else:
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


def backlog() -> int:
    """Return how many connections may be accepted at once, before each is counted."""
    return min(2048, limit() // 8)
