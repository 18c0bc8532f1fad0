"""How much of what a client sends is looked at in one go, and in how many pieces a body may come."""

from __future__ import annotations

import asyncio
from typing import Any

import h11

from launcher.http.connections import ImpatientProtocol

_MAX_HEADER_BYTES = 32 * 1024  # of a request's head
# Received at once, after which others have their turn; h11 takes 2 µs a header and 10 µs a chunk.
_AT_ONCE = 16 * 1024  # bytes
_FREE_CHUNKS = 1024  # of any body: a program may send each token of its JSON as one
_BYTES_A_CHUNK = 64  # of those beyond, on average

# One for all connections: what is received is copied out of it before their event loop goes on.
_buffer = memoryview(bytearray(_AT_ONCE))


class FairProtocol(ImpatientProtocol, asyncio.BufferedProtocol):
    """Receives little at once, and answers 400 to a body in a million chunks before it has taken them apart."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _CountingConnection(h11.SERVER, _MAX_HEADER_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where asyncio is to put what it receives."""
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was put there."""
        self.data_received(bytes(_buffer[:nbytes]))

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, if nothing was answered yet, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True  # nothing more can be sent
            self.cycle.scope["state"]["refused"] = msg  # for the log


class _CountingConnection(h11.Connection):
    """Refuses a body with more chunks than its bytes explain."""

    _chunks = _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._bytes += len(event.data)
            self._chunks += event.chunk_start
            if self._chunks > _FREE_CHUNKS + self._bytes // _BYTES_A_CHUNK:
                raise h11.RemoteProtocolError("the body comes in too many chunks")
        return event
