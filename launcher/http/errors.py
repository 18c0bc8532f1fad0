"""Errors as HTTP answers: `{"error": {"message", "type", "param", "code"}}`, as OpenAI's clients read them."""

from __future__ import annotations

import math

import msgspec
from starlette.responses import Response

from engine.errors import Krea2Error

STATUS_OF_CODE = {
    "invalid_parameter": 400,
    "bad_lora": 400,
    "invalid_api_key": 401,
    "host_not_allowed": 403,
    "origin_not_allowed": 403,
    "not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "queue_full": 429,
    "cancelled": 499,
    "rank_failed": 503,
    "launch_failed": 503,
    "server_unavailable": 503,
    "timeout": 504,
}  # and 500 for everything else
RETRY_AFTER_S = 1.0  # where the server does not know better
_RETRY = (429, 503)
_NO_RETRY = (500, 504)  # OpenAI's clients repeat these by themselves, though it would end as it did


def http_error(code: str, message: str, parameter: str | None = None) -> Krea2Error:
    """An error that only HTTP knows, by its code."""
    error = Krea2Error(message, parameter=parameter)
    error.code = code
    return error


def status_of(error: Krea2Error) -> int:
    return STATUS_OF_CODE.get(error.code, 500)


def error_object(error: Krea2Error, request_id: str) -> dict[str, object]:
    """What an answer has under `error`."""
    status = status_of(error)
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {
        "message": error.message,
        "type": kind,
        "param": error.parameter,
        "code": error.code,
        "request_id": request_id,
    }


def error_response(error: Krea2Error, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """The answer to a request that failed before anything was sent."""
    status = status_of(error)
    headers = dict(headers or {})
    if status in _RETRY:
        seconds = error.retry_after_s or RETRY_AFTER_S
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    elif status in _NO_RETRY:
        headers["X-Should-Retry"] = "false"
    body = msgspec.json.encode({"error": error_object(error, request_id)})
    return Response(body, status, headers, media_type="application/json")
