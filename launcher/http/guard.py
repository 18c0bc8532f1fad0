"""What every HTTP request passes before the application sees it, and what is counted and logged afterwards.

Checks host, origin, key and body, in this order; gives the request an id; ends it when its client hangs up.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
import traceback
import uuid
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import Krea2Error
from launcher.http.errors import error_response, http_error
from launcher.http.hosts import allowed_hosts, host_name, is_own_origin
from launcher.http.server_process import SEND_S
from launcher.logs import log_event
from launcher.messages.configs import HttpConfig
from launcher.messages.encoding import describe

FILES_PATH = "/v1/images/files/"
BODY_S = 30.0  # for a body to arrive
_HUNG_UP = 499
_QUIET = ("/health", "/ready", "/metrics")  # which are asked all the time
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)


class Guard:
    """The application as the network sees it. `registry` holds its metrics."""

    def __init__(self, app: ASGIApp, config: HttpConfig) -> None:
        self._app, self._config = app, config
        self._keys = [key.encode() for key in config.api_keys]
        self._hosts = allowed_hosts(config)
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "krea2_http_requests", "Answered HTTP requests", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "krea2_http_request_seconds", "Seconds until an answer was sent", ["route"],
            registry=self.registry, buckets=_SECONDS,
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        offered = headers.get("x-request-id", "")
        request_id = offered if _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        answer = _Answer(send, request_id)
        path, began = scope["path"], time.monotonic()
        error: str | None = None
        try:
            self._check_origin(scope, headers)
            self._check_key(scope, headers)
            body = await self._read_body(scope, headers, receive)
            await self._run(scope, receive, answer, body)
            error = state.get("error_code")
        except Krea2Error as problem:
            error = problem.code
            await error_response(problem, request_id, _extra_headers(problem))(scope, receive, answer.send)
        except _SlowClientError as problem:
            error = str(problem)
            raise
        except Exception as problem:
            error = describe(problem)
            traceback.print_exception(problem)
            if answer.status is not None:
                raise  # so that the connection is closed: the answer is not whole
            internal = Krea2Error("the server made a mistake: its log has the request's id")
            await error_response(internal, request_id)(scope, receive, answer.send)
        finally:
            self._record(scope, path, answer.status, time.monotonic() - began, request_id, error)

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Refuse what a web page of somebody else makes the user's browser send."""
        host = headers.get("host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            allowed = "localhost, the address of this server or an --allowed-host"
            raise http_error("host_not_allowed", f"Host must be {allowed}, got {host!a}")
        origin = headers.get("origin")
        if scope["method"] in ("GET", "HEAD") or origin is None:
            return
        if not is_own_origin(origin, host, self._config.public_url):
            raise http_error("origin_not_allowed", f"Origin must be this server's own, got {origin!a}")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        # A link to an image carries its own secret, so that it can be opened by whoever gets it.
        if not self._keys or path.startswith(FILES_PATH) or not (path == "/metrics" or path.startswith("/v1/")):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        sent = key.strip().encode("latin-1")
        matches = [hmac.compare_digest(sent, known) for known in self._keys]  # all, so that time tells nothing
        if scheme.lower() != "bearer" or not any(matches):
            told = "an API key is needed: send Authorization: Bearer KEY" if not key else "the API key is not valid"
            raise http_error("invalid_api_key", told)

    async def _read_body(self, scope: Scope, headers: Headers, receive: Receive) -> bytes:
        limit = self._config.max_body_bytes
        declared = headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
            raise _too_large(limit)
        if not declared and "transfer-encoding" not in headers:
            return b""
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise http_error("cancelled", "the client hung up")
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise http_error("body_timeout", f"the body must arrive within {BODY_S:g} s") from None

    async def _run(self, scope: Scope, receive: Receive, answer: _Answer, body: bytes) -> None:
        """Run the application until it has answered or its client has hung up, which cancels it."""
        replayed: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        over = asyncio.Event()

        async def receive_again() -> Message:
            if replayed:
                return replayed.pop()
            await over.wait()
            return {"type": "http.disconnect"}

        async def hang_up() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def run_app() -> None:
            await self._app(scope, receive_again, answer.send)

        running = asyncio.create_task(run_app())
        watching = asyncio.create_task(hang_up())
        try:
            await asyncio.wait((running, watching), return_when=asyncio.FIRST_COMPLETED)
            if running.done() or answer.complete:  # which looks like hanging up, too
                await running
            else:
                answer.status = _HUNG_UP
        finally:
            over.set()
            for task in (running, watching):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

    def _record(
        self, scope: Scope, path: str, status: int | None, seconds: float, request_id: str, error: str | None
    ) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(route, method, status or 0).inc()
        self._seconds.labels(route).observe(seconds)
        if path not in _QUIET or error is not None:
            client = scope.get("client")
            log_event(
                "http", request_id=request_id, method=scope["method"], path=path, status=status,
                seconds=round(seconds, 4), client=client[0] if client else None, error=error,
            )  # fmt: skip


class _Answer:
    """Sends an answer, and remembers its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id = send, request_id
        self.status: int | None = None
        self.complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._request_id
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Content-Security-Policy", _CONTENT_POLICY)
        else:
            self.complete = not message.get("more_body", False)
        try:
            async with asyncio.timeout(SEND_S):
                await self._send(message)
        except TimeoutError:
            raise _SlowClientError(f"the client took nothing for {SEND_S:g} s") from None


class _SlowClientError(Exception):
    """The client does not take its answer."""


def _extra_headers(error: Krea2Error) -> dict[str, str]:
    if error.code == "invalid_api_key":
        return {"WWW-Authenticate": "Bearer"}
    if error.code in ("body_too_large", "body_timeout"):
        return {"Connection": "close"}  # what is left of the body is never read
    return {}


def _too_large(limit: int) -> Krea2Error:
    return http_error("body_too_large", f"the body must be at most {limit} bytes")
