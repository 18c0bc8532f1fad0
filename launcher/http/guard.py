"""What every HTTP request passes before the application sees it, and what is counted and logged after it.

Checks host, origin, key and body, in this order; gives the request an id; ends it when its client hangs up.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import ArgumentError, Krea2Error, ServerError, error_from_code
from launcher.http.answers.errors import error_response, internal_error, is_automatic1111s, shorten
from launcher.http.answers.other_servers import instead_of
from launcher.http.apis.held_images import FILES_PATH
from launcher.http.apis.sglang import SGLANG_PATHS
from launcher.http.bodies import most_bytes, too_large
from launcher.http.credentials import NEEDED, NEEDED_AS_PASSWORD, offered_keys
from launcher.http.origins import Origins
from launcher.http.paths import Paths
from launcher.http.probes import PROBED, Probes
from launcher.http.server_process import SEND_S
from launcher.http.uploads.arriving import PATIENCE_S, Arriving
from launcher.http.workers.metrics import HttpMetrics
from launcher.logs import log_event, log_exception
from launcher.messages.api_keys import KeyRing, name_keys, read_keys
from launcher.messages.configs import HttpConfig
from launcher.messages.encoding import describe

BODY_S = 30.0  # seconds for a body to arrive
_SLOWEST = 128 * 1024  # bytes a second of a large one
_HUNG_UP = 499
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_PROBING = ("GET", "HEAD", "OPTIONS")  # HAProxy sends OPTIONS unless told otherwise
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)


class Guard:
    """The application as the network sees it: an ASGI application around another, whose requests it counts."""

    def __init__(self, app: ASGIApp, config: HttpConfig, metrics: HttpMetrics) -> None:
        self._app, self._config, self._metrics = app, config, metrics
        self._probes = Probes()
        self._keys = KeyRing(name_keys(config.api_keys, config.file_keys))
        self._origins = Origins(config)
        self._paths = Paths(config.public_url)
        self._arriving = Arriving()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        self._paths.simplify(scope)
        offered = request.headers.get("x-request-id", "")
        request.state.key_name = request.state.model = request.state.error_message = None
        request_id = request.state.request_id = offered if is_request_id(offered) else uuid.uuid4().hex
        # Others may see another request in the rest of a body of two lengths (RFC 9112, 6.3).
        is_ambiguous = "content-length" in request.headers and "transfer-encoding" in request.headers
        response = _Response(send, request_id, self._origins.headers(request), closes=is_ambiguous)
        began = time.monotonic()
        error: str | None = None
        try:
            self._origins.check(request, is_probe=self._is_probe(request))
            preflight = self._origins.answer_preflight(request)
            if preflight is not None:
                await preflight(scope, receive, response.send)
                return
            self._check_key(request)
            await self._run(request, await self._read_body(request), response)
            error = getattr(request.state, "error_code", None)
        except Krea2Error as problem:
            error, request.state.error_message = problem.code, problem.message
            await error_response(problem, request_id, path=scope["path"])(scope, receive, response.send)
        except _SlowClientError as problem:
            error = str(problem)
            raise
        except asyncio.CancelledError:  # by uvicorn: this process ends
            error = ServerError.code
            if response.status is None:
                ending = ServerError("the server is being stopped")
                await error_response(ending, request_id, path=scope["path"])(scope, receive, response.send)
            raise
        except Exception as problem:
            error = describe(problem)
            log_exception(problem, request_id=request_id)
            if response.status is None:
                await error_response(internal_error(), request_id, path=scope["path"])(scope, receive, response.send)
            elif not response.complete:
                raise  # so that the connection is closed: the response is not whole
        finally:
            self._record(request, response.status, time.monotonic() - began, error)

    def read_keys_again(self) -> None:
        """Read the file of keys again, in any thread; if it is damaged, the keys stay as they are."""
        if self._config.api_key_file is not None:
            try:
                self._keys = KeyRing(name_keys(self._config.api_keys, read_keys(self._config.api_key_file)))
            except ArgumentError as error:
                log_event("keys not read again", level="error", message=error.message)

    def _is_probe(self, request: Request) -> bool:
        path = request.scope["path"]
        return path in PROBED and request.method in _PROBING and not self.asks_for_key(path)

    def asks_for_key(self, path: str) -> bool:
        """Whether a path is answered to those alone who have an API key."""
        # A link to an image carries its own secret, so that anybody who is given it can open it.
        if not self._keys or path.startswith(FILES_PATH):
            return False
        return path.startswith(("/v1/", "/sdapi/")) or path.rstrip("/") in ("/metrics", *SGLANG_PATHS)

    def _check_key(self, request: Request) -> None:
        path = request.scope["path"]
        if not self.asks_for_key(path):
            return
        offered = offered_keys(request.headers, path)
        name = next((name for name in map(self._keys.name_of, offered) if name is not None), None)
        if name is None:
            needed = NEEDED_AS_PASSWORD if is_automatic1111s(path) else NEEDED
            raise error_from_code("invalid_api_key", "the API key is not valid" if any(offered) else needed)
        request.state.key_name = name

    async def _read_body(self, request: Request) -> bytes:
        path = request.scope["path"]
        limit, refusal = most_bytes(path, self._config), too_large(path, self._config)
        declared = request.headers.get("content-length", "")
        if (told := instead_of(path)) is not None:  # not that a file is too large for nothing
            refusal = error_from_code("not_found", f"there is nothing at {shorten(path)}: {told}")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
            raise refusal
        if not declared and "transfer-encoding" not in request.headers:
            return b""
        body, loop, large = bytearray(), asyncio.get_running_loop(), 0
        began = loop.time()
        try:
            async with asyncio.timeout(BODY_S) as deadline:
                async for part in request.stream():
                    body += part
                    if len(body) > limit:
                        raise refusal
                    if len(body) - large > self._config.max_body_bytes:
                        large = len(body)
                        deadline.reschedule(began + BODY_S + large / _SLOWEST)
                        self._arriving.grew(deadline, began, large)
        except TimeoutError:
            raise error_from_code(
                "body_timeout",
                f"the body must arrive within {BODY_S:g} s, and a large one by {_SLOWEST} bytes a second, or within "
                f"{PATIENCE_S:g} s where others need the room",
            ) from None
        except ClientDisconnect:
            if (refused := getattr(request.state, "refused", None)) is not None:  # and answered: see `FairProtocol`
                raise error_from_code("invalid_parameter", refused) from None
            raise error_from_code("cancelled", "the client hung up") from None
        finally:
            self._arriving.ended(deadline)
        return bytes(body)

    async def _run(self, request: Request, body: bytes, response: _Response) -> None:
        """Run the application until it has answered or its client has hung up, which cancels it."""
        replayed: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body  # which may be large, and is not needed once it was read

        async def hang_up() -> Message:
            while (message := await request.receive())["type"] != "http.disconnect":
                pass
            return message

        async def receive_again() -> Message:
            return replayed.pop() if replayed else await asyncio.shield(watching)

        running = asyncio.ensure_future(self._app(request.scope, receive_again, response.send))
        watching = asyncio.create_task(hang_up())
        try:
            await asyncio.wait((running, watching), return_when=asyncio.FIRST_COMPLETED)
            if running.done() or response.complete:  # which looks like hanging up, too
                await running
            else:
                response.status = _HUNG_UP
        finally:
            for task in (running, watching):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

    def _record(self, request: Request, status: int | None, seconds: float, error: str | None) -> None:
        path = request.scope["path"]
        route = getattr(request.scope.get("route"), "path", None) or "other"
        method = request.method if request.method in _METHODS else "other"
        self._metrics.count(route, method, status or 0, seconds)
        stands_for = 1
        if path in PROBED:
            stands_for = self._probes.count(path, status or 0, time.monotonic(), failed=error is not None)
        if stands_for:
            log_event(
                "http", request_id=request.state.request_id, method=shorten(request.method), path=shorten(path),
                status=status, seconds=round(seconds, 4), client=request.client and request.client.host, error=error,
                requests=stands_for if stands_for > 1 else None, worker=self._config.worker,
                key=request.state.key_name, model=request.state.model and shorten(request.state.model),
                message=request.state.error_message and shorten(request.state.error_message),
            )  # fmt: skip


def is_request_id(offered: str) -> bool:
    """Whether the X-Request-ID that a client sent is taken, for answer and log."""
    return _REQUEST_ID.fullmatch(offered) is not None


class _Response:
    """Sends a response with the headers that all have, and remembers its status and whether it is complete.

    headers: what the one who asked gets besides. closes: end the connection with it.
    """

    def __init__(self, send: Send, request_id: str, headers: Mapping[str, str], *, closes: bool) -> None:
        self._send, self._request_id, self._headers, self._closes = send, request_id, headers, closes
        self.status: int | None = None
        self.complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._request_id
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Content-Security-Policy", _CONTENT_POLICY)
            headers.update(self._headers)
            if self._closes:
                headers["Connection"] = "close"
        else:
            self.complete = not message.get("more_body", False)
        try:
            async with asyncio.timeout(SEND_S):
                await self._send(message)
        except TimeoutError:
            raise _SlowClientError(f"the client took nothing for {SEND_S:g} s") from None


class _SlowClientError(Exception):
    """The client does not read its response."""
