"""What Serve's proxies do to HTTP, put right for the application behind them: hang-ups, the header X-Request-ID, and
requests that come while all is being stopped."""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import ServerError
from launcher.http.answers.errors import error_response

_ID_HEADER = b"x-request-id"
_LEAVES = ServerError("the server is being stopped and takes no more requests", retry_after_s=5.0)
_HANG_UP_S = 5.0  # for a request to end whose client has hung up


class BehindProxy:
    """An application as a proxy of Serve's is to see it.

    A proxy has added X-Request-ID to the request if its client did not, and adds the same to the answer: it would be
    there twice. And it cancels the request of a client that hangs up, which is told as a hang-up here, since whatever
    else cancels a request is a fault of ours.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._running = 0
        self._leaves = False

    def leave(self) -> int:
        """Answer 503 from now on to requests that come, since all is being stopped. Returns how many others run."""
        self._leaves = True
        return self._running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._leaves:
            given = dict(scope["headers"]).get(_ID_HEADER, b"").decode("latin-1")
            await error_response(_LEAVES, given, path=scope["path"])(scope, receive, send)
            return
        self._running += 1
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self._running -= 1

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.Event()

        async def receive_until_gone() -> Message:
            received, leaving = asyncio.ensure_future(receive()), asyncio.ensure_future(gone.wait())
            try:
                await asyncio.wait((received, leaving), return_when=asyncio.FIRST_COMPLETED)
                if received.done() and not received.cancelled() and received.exception() is None:
                    return received.result()
                return {"type": "http.disconnect"}  # which is an exception where Serve has cancelled its own asking
            finally:
                for waiting in (received, leaving):
                    waiting.cancel()

        async def send_to_proxy(message: Message) -> None:
            if gone.is_set():
                return
            if message["type"] == "http.response.start":
                headers = [each for each in message.get("headers", ()) if each[0].lower() != _ID_HEADER]
                message = {**message, "headers": headers}
            await send(message)

        # Without Serve's context, which would have it cancel what we ask of engines on its own.
        context = contextvars.Context()
        running = asyncio.create_task(self._run(scope, receive_until_gone, send_to_proxy), context=context)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            if not running.done():
                gone.set()
                await asyncio.wait((running,), timeout=_HANG_UP_S)
            running.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await running
            raise

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
