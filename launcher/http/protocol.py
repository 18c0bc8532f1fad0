"""How much of what a client sends is looked at in one go, in how many pieces a body may come, and what becomes of the
rest of one that was answered before it had come.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import Any

import h11

from engine.errors import error_from_code
from launcher.http.answers.errors import error_response, shorten
from launcher.http.connections import ImpatientProtocol

_MAX_HEADER_BYTES = 32 * 1024  # of a request's head
# Received at once, after which others have their turn; h11 takes 2 µs a header and 10 µs a chunk.
_AT_ONCE = 16 * 1024  # bytes
_FREE_CHUNKS = 1024  # of any body: a program may send each token of its JSON as one
_BYTES_A_CHUNK = 64  # of those beyond, on average
# Of a body that was answered already: httpx sends all of it before it reads, and loses the answer if we hang up on it.
LINGER_S = 30.0  # as long as a body may take
LINGER_BYTES = 64 * 2**20

# One for all connections: what is received is copied out of it before their event loop goes on.
_buffer = memoryview(bytearray(_AT_ONCE))


class FairProtocol(ImpatientProtocol, asyncio.BufferedProtocol):
    """Receives little at once, and answers 400 to a body in a million chunks before it has taken them apart.

    A connection that it closes while a body still comes is read for a while longer: see `_Lingering`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn: _CountingConnection = _CountingConnection(h11.SERVER, _MAX_HEADER_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin with a connection."""
        super().connection_made(_Lingering(transport, self))  # type: ignore[arg-type]

    def shutdown(self) -> None:
        """End a connection as soon as its answer has been sent: the server is being stopped."""
        if self.transport.is_closing():
            self.transport.close()
        else:
            super().shutdown()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where asyncio is to put what it receives."""
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was put there."""
        if self.transport.is_closing():
            self.transport.drop(nbytes)  # type: ignore[attr-defined]
        else:
            self.data_received(bytes(_buffer[:nbytes]))

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, if nothing was answered yet, and close the connection. Who writes HTTP by hand is
        told what is wrong, as `h11` has it, in place of uvicorn's `msg`."""
        told = self.conn.problem or msg
        state = {} if self.cycle is None or self.cycle.response_complete else self.cycle.scope["state"]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            request_id = state.get("request_id") or uuid.uuid4().hex
            answer = error_response(error_from_code("invalid_parameter", told), request_id)
            headers = [*answer.raw_headers, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
            for event in (
                h11.Response(status_code=answer.status_code, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True  # nothing more can be sent
            self.cycle.scope["state"]["refused"] = told  # for the log


class _Lingering:
    """A transport that goes on reading when it is closed while a body still comes, and drops that.

    It closes when its client does, after `LINGER_S` or `LINGER_BYTES`, or when it is closed again. If it closed at
    once, the kernel would reset the connection, and the client might lose the answer.
    """

    def __init__(self, transport: asyncio.Transport, protocol: FairProtocol) -> None:
        self._transport, self._protocol = transport, protocol
        self._left = 0  # bytes that it still drops
        self._is_lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._is_lingering or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing() or self._protocol.conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            self._transport.close()
            return
        self._is_lingering, self._left = True, LINGER_BYTES
        with suppress(OSError):  # it has been reset already
            self._transport.write_eof()
        self._transport.resume_reading()
        self._protocol.loop.call_later(LINGER_S, self._transport.close)

    def drop(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            self._transport.close()


class _CountingConnection(h11.Connection):
    """Refuses a body with more chunks than its bytes explain.

    problem: what is wrong with what the client sent, if anything is.
    """

    problem: str | None = None
    _chunks = _bytes = 0

    def next_event(self) -> Any:
        try:
            return self._count(super().next_event())
        except h11.RemoteProtocolError as error:
            self.problem = shorten(f"this is not HTTP as the server reads it: {error}")
            if error.error_status_hint == 431:
                self.problem = f"the line and headers of a request must be at most {_MAX_HEADER_BYTES // 1024} KiB"
            raise

    def _count(self, event: Any) -> Any:
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._bytes += len(event.data)
            self._chunks += event.chunk_start
            if self._chunks > _FREE_CHUNKS + self._bytes // _BYTES_A_CHUNK:
                raise h11.RemoteProtocolError("the body comes in too many chunks")
        return event
