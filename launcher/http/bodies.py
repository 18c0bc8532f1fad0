"""The JSON body of a request: bounded before anything is built of it, and read where nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from engine.config.bounded_json import JsonLimits, read_json

# What the routes know takes some fifty values; strings are bounded by --max-body-bytes.
_MOST = JsonLimits(values=4096, depth=8, key=100, string=1 << 62)
_LONG = 64 * 1024  # bytes: what takes longer to read than other requests should wait


class BoundedRoute(APIRoute):
    """A route whose handler gets a `_BoundedRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await handle(_BoundedRequest(request.scope, request.receive))

        return handle_bounded


class _BoundedRequest(Request):
    """A request whose `json` has limits. It raises `json.JSONDecodeError`, which FastAPI knows as its own."""

    async def json(self) -> Any:
        body = await self.body()
        if len(body) <= _LONG:
            return read_json(body, _MOST)
        return await asyncio.to_thread(read_json, body, _MOST)
