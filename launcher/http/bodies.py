"""The body of a request: bounded before anything is built of it, and read where nobody waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from engine.config.bounded_json import JsonLimits, read_json
from engine.errors import ArgumentError, Krea2Error, error_from_code
from launcher.http.apis.automatic1111.lists import PATH as AUTOMATIC1111
from launcher.http.apis.chat.routes import CHAT_PATH
from launcher.http.apis.openai_images import EDITS_PATH, GENERATIONS_PATH
from launcher.http.apis.reports import PATH as REPORTS_PATH
from launcher.http.uploads.forms import FORM_TYPE, FormLimits, is_form, read_form
from launcher.http.uploads.pictures import NAMES, base64_bytes
from launcher.messages.configs import HttpConfig
from launcher.pictures.wanted import NO_PICTURES

# What the routes know takes some fifty values; strings are bounded by --max-body-bytes.
_MOST = JsonLimits(values=4096, depth=8, key=100, string=1 << 62)
# A chat comes whole each time, with the images that were answered, and with tools whose schemas nobody needs here.
CHAT_ROOM = 32  # times --max-body-bytes
_MOST_OF_CHAT = JsonLimits(values=1 << 16, depth=64, key=1024, string=1 << 62)
_LONG = 64 * 1024  # bytes: what takes longer to read than other requests should wait
# Of a request.
_MOST_PICTURES = {EDITS_PATH: 2, GENERATIONS_PATH: 2, f"{AUTOMATIC1111}img2img": 2, CHAT_PATH: 1, REPORTS_PATH: 1}


class BoundedRoute(APIRoute):
    """A route whose handler gets a `_BoundedRequest`. forms: what those may have that it takes as well as JSON."""

    limits = _MOST
    forms: FormLimits | None = None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            fields, content_type = None, request.headers.get("content-type", "")
            scope = request.scope
            if self.forms is not None and is_form(content_type):
                # Read here, where errors about it stay what they are, and told to FastAPI as JSON.
                body = await request.body()
                del request._body  # which would stay until the answer
                fields = await _in_peace(read_form, body, content_type, self.forms)
                del body
                others = [header for header in scope["headers"] if header[0] != b"content-type"]
                scope = {**scope, "headers": [*others, (b"content-type", b"application/json")]}
            bounded = _BoundedRequest(scope, request.receive)
            bounded.limits, bounded.fields = self.limits, fields
            del request, fields
            return await handle(bounded)

        return handle_bounded


class ChatRoute(BoundedRoute):
    """The route of chats."""

    limits = _MOST_OF_CHAT


def form_route(config: HttpConfig) -> type[BoundedRoute]:
    """Make the class of routes that take forms with pictures."""
    most = config.limits.max_image_bytes

    class FormRoute(BoundedRoute):
        forms = FormLimits(config.max_body_bytes, most, base64_bytes(most), NAMES)

    return FormRoute


def taken_types(route: object) -> tuple[str, ...]:
    """The types of bodies that a route takes."""
    return ("application/json", FORM_TYPE) if getattr(route, "forms", None) else ("application/json",)


def most_bytes(path: str, config: HttpConfig) -> int:
    """Say how long a body may be."""
    pictures = _MOST_PICTURES.get(path, 0) if _takes_pictures(path, config) else 0
    plain = config.max_body_bytes * (CHAT_ROOM if path == CHAT_PATH else 1)
    return plain + pictures * base64_bytes(config.limits.max_image_bytes)


def _takes_pictures(path: str, config: HttpConfig) -> bool:
    return config.audit_log is not None if path == REPORTS_PATH else config.engine.image_input


def too_large(path: str, config: HttpConfig) -> Krea2Error:
    """The error for a longer one."""
    if path in _MOST_PICTURES and path != REPORTS_PATH and not _takes_pictures(path, config):
        return ArgumentError(NO_PICTURES, parameter="image")
    return error_from_code("body_too_large", f"the body must be at most {most_bytes(path, config)} bytes")


class _BoundedRequest(Request):
    """A request whose `json` has limits. It raises `json.JSONDecodeError`, which FastAPI knows as its own.

    fields: of a form, which stand in the place of JSON.
    """

    limits = _MOST
    fields: dict[str, Any] | None = None
    _whole = b""

    async def body(self) -> bytes:
        """Say whether there is a body. FastAPI holds what it gets until the answer, which pictures are too large for:
        `json` reads it, and leaves nothing."""
        if self.fields is None and not self._whole:
            self._whole = await super().body()
            del self._body
        return b" " if self._whole or self.fields is not None else b""

    async def json(self) -> Any:
        if self.fields is not None:
            fields, self.fields = self.fields, None
            return fields
        body, self._whole = self._whole, b""
        return await _in_peace(_read, body, self.limits)


async def _in_peace(read: Callable[..., Any], body: bytes, *how: Any) -> Any:
    """Read a body, in another thread if that may take long."""
    return read(body, *how) if len(body) <= _LONG else await asyncio.to_thread(read, body, *how)


def _read(body: bytes, limits: JsonLimits) -> Any:
    """Read JSON whose texts are Unicode, since answers repeat some of them."""
    if body.startswith(b"--"):
        raise json.JSONDecodeError("it is a form, whose Content-Type your program knows: leave it out", "", 0)
    value = read_json(body, limits)
    if b"\\u" in body:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise json.JSONDecodeError("texts must be valid Unicode, got lone surrogates", "", 0) from None
    return value
