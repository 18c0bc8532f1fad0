"""What Serve's proxies are to do besides: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names `middlewares`.

A cluster serves without it. Only a request whose X-Request-ID is none that our log takes then has another there than in
its answer.
"""

from __future__ import annotations

import uuid

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from launcher.http.guard import is_request_id

_HEADER = b"x-request-id"


def middlewares() -> list[Middleware]:
    """Give the middlewares."""
    return [Middleware(PlainRequestIds)]


class PlainRequestIds:
    """Replaces an X-Request-ID that the application would not take by a new one, before the proxy takes it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_request_id(Headers(scope=scope).get("x-request-id", "")):
            others = [each for each in scope["headers"] if each[0].lower() != _HEADER]
            scope = {**scope, "headers": [*others, (_HEADER, uuid.uuid4().hex.encode())]}
        await self._app(scope, receive, send)
