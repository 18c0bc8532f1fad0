"""Server-sent events, as every API that streams sends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

SILENCE_S = 15.0  # after which a comment is sent: many proxies and clients end a connection that is silent for 30 or 60
_COMMENT = b": waiting\n\n"  # which every reader of server-sent events passes over
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # which has nginx pass on events as they come


class EventStream(StreamingResponse):
    """Sends server-sent events, with comments while there is none, and closes their generator at once when the client
    hangs up."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(_with_comments(events), media_type="text/event-stream", headers={**_HEADERS, **headers})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events), aclosing(self.body_iterator):  # type: ignore[type-var]
            await self.stream_response(send)


async def _with_comments(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    while True:
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait((coming,), timeout=SILENCE_S))[0]:
                yield _COMMENT
            if (event := coming.result()) is None:
                return
        finally:
            if not coming.done():
                coming.cancel()
                with suppress(asyncio.CancelledError):
                    await coming
        yield event


def write_data(fields: Mapping[str, object]) -> bytes:
    """Write an event that has data alone."""
    return b"data: %b\n\n" % msgspec.json.encode(fields)


def write_event(kind: str, fields: Mapping[str, object]) -> bytes:
    """Write an event, with its kind among the fields of its data, too. Bytes become base64."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))
