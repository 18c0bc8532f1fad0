"""JSON responses, and errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from engine.errors import Krea2Error, ModerationBlockedError

STATUS_OF_CODE = {
    "invalid_parameter": 400,
    "bad_lora": 400,
    "moderation_blocked": 400,
    "invalid_api_key": 401,
    "host_not_allowed": 403,
    "origin_not_allowed": 403,
    "not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "conflict": 409,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "idempotency_conflict": 422,
    "queue_full": 429,
    "rate_limited": 429,
    "cancelled": 499,
    "rank_failed": 503,
    "launch_failed": 503,
    "server_unavailable": 503,
    "filter_unavailable": 503,
    "timeout": 504,
}  # and 500 for everything else
RETRY_AFTER_S = 1.0  # where the server does not know better
_NEVER_AGAIN = {"X-Should-Retry": "false"}  # OpenAI's clients repeat it by themselves, though it would end as it did
_CLOSE = {"Connection": "close"}  # what is left of the body is never read
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: _CLOSE,
    409: _NEVER_AGAIN,
    413: _CLOSE,
    500: _NEVER_AGAIN,
    504: _NEVER_AGAIN,
}


_SHOWN = 200  # characters


def shorten(text: str) -> str:
    """Cut what a client sent to what a log or an error shows of it."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


class JsonResponse(Response):
    """A response whose body msgspec writes: a struct as an object, bytes as base64."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def error_body(error: Krea2Error, request_id: str) -> dict[str, object]:
    """Put an error into the object that clients read. request_id: as in `X-Request-ID`."""
    status = STATUS_OF_CODE.get(error.code, 500)
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    more: dict[str, object] = {}
    if isinstance(error, ModerationBlockedError):
        kind, more = "image_generation_user_error", {"category": error.category}  # the type is OpenAI's
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.parameter,
            "code": error.code,
            "request_id": request_id,
            **more,
        }
    }


def error_response(
    error: Krea2Error,
    request_id: str,
    headers: dict[str, str] | None = None,
    more: Mapping[str, object] | None = None,
    path: str = "",
) -> Response:
    """Make the response to a request that failed before anything was sent, with status and headers of the error.

    more: what its object has besides the error. path: of the request, whose clients may look for it elsewhere.
    """
    status = STATUS_OF_CODE.get(error.code, 500)
    headers = {**(headers or {}), **_HEADERS.get(status, {})}
    if is_automatic1111s(path):
        more = {"detail": error.message, "errors": error.message, "body": ""} | dict(more or {})
        if status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="krea2"'
    if status == 429 and error.parameter is not None:  # at fault, whatever waits
        headers |= _NEVER_AGAIN
    if status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or RETRY_AFTER_S)))
    return JsonResponse(error_body(error, request_id) | dict(more or {}), status, headers)


def is_automatic1111s(path: str) -> bool:
    """Whether it is a route of AUTOMATIC1111's API, whose clients know user and password, and errors as FastAPI's."""
    return path.startswith("/sdapi/")


def internal_error() -> Krea2Error:
    """Make the error that stands for a mistake of ours, of which the log has a traceback."""
    return Krea2Error("the server made a mistake: its log has the request's id")
