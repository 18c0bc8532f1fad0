"""The JSON body of a request: bounded before anything is built of it, and read where nobody waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from engine.config.bounded_json import JsonLimits, read_json
from launcher.http.apis.chat.routes import CHAT_PATH

# What the routes know takes some fifty values; strings are bounded by --max-body-bytes.
_MOST = JsonLimits(values=4096, depth=8, key=100, string=1 << 62)
# A chat comes whole each time, with the images that were answered, and with tools whose schemas nobody needs here.
CHAT_ROOM = 32  # times --max-body-bytes
_MOST_OF_CHAT = JsonLimits(values=1 << 16, depth=64, key=1024, string=1 << 62)
_LONG = 64 * 1024  # bytes: what takes longer to read than other requests should wait


class BoundedRoute(APIRoute):
    """A route whose handler gets a `_BoundedRequest`."""

    limits = _MOST

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            bounded = _BoundedRequest(request.scope, request.receive)
            bounded.limits = self.limits
            return await handle(bounded)

        return handle_bounded


class ChatRoute(BoundedRoute):
    """The route of chats."""

    limits = _MOST_OF_CHAT


def most_bytes(path: str, max_body_bytes: int) -> int:
    """Say how long a body may be."""
    return max_body_bytes * (CHAT_ROOM if path.rstrip("/") == CHAT_PATH else 1)


class _BoundedRequest(Request):
    """A request whose `json` has limits. It raises `json.JSONDecodeError`, which FastAPI knows as its own."""

    limits = _MOST

    async def json(self) -> Any:
        body = await self.body()
        if len(body) <= _LONG:
            return _read(body, self.limits)
        return await asyncio.to_thread(_read, body, self.limits)


def _read(body: bytes, limits: JsonLimits) -> Any:
    """Read JSON whose texts are Unicode, since answers repeat some of them."""
    value = read_json(body, limits)
    if b"\\u" in body:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise json.JSONDecodeError("texts must be valid Unicode, got lone surrogates", "", 0) from None
    return value
