"""Pieces of the OpenAPI description that several routes share.

A field says what it means, with an example of its value, from which /docs makes the example of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Header

from launcher.messages.client_messages import LONGEST_IDEMPOTENCY_KEY

Schema = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]
MEANS = "x-means"  # the keyword of a schema that `means` writes
STATUS_MEANS = {
    400: "A parameter is wrong, unknown or contradicts another; or the body cannot be read.",
    401: "The server wants an API key, and got none or another.",
    403: "Host, or the Origin of a web page, is none that the server knows.",
    404: "There is nothing of this name or at this path.",
    405: "The path has no such method.",
    408: "The body did not arrive in time.",
    409: "A server such as this one does not do it; the message says what to do instead.",
    413: "The body has more bytes than the server takes.",
    415: "Content-Type is none that the route takes.",
    422: "Another request had the same Idempotency-Key.",
    429: "Too many requests wait, or a key has had its share; the header Retry-After says when to come back.",
    499: "The client hung up, or has interrupted its request, which was cancelled.",
    500: "The server made a mistake; its log has the id of the request.",
    503: "The engine starts, or has failed; the header Retry-After says when to come back.",
    504: "The request took longer than its timeout_s, or would have.",
}


def means(parameter: str) -> Schema:
    """Say, as `json_schema_extra` of a field of a body, which of our parameters it is if neither its name nor `ALIASES`
    does. The description then has its limits and default."""
    return {MEANS: parameter}


def object_schema(properties: Mapping[str, Any], optional: Sequence[str] = ()) -> Schema:
    """Describe an object, of whose properties only the `optional` ones may be missing."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def text(description: str, example: str) -> Schema:
    """Describe a string."""
    return {"type": "string", "description": description, "examples": [example]}


def integer(description: str, example: int) -> Schema:
    """Describe a whole number."""
    return {"type": "integer", "description": description, "examples": [example]}


def number(description: str, example: float) -> Schema:
    """Describe a number."""
    return {"type": "number", "description": description, "examples": [example]}


def flag(description: str, example: bool) -> Schema:
    """Describe what is true or false."""
    return {"type": "boolean", "description": description, "examples": [example]}


def constant(value: str, description: str = "") -> Schema:
    """Describe a string that is always the same."""
    return {"type": "string", "const": value} | ({"description": description} if description else {})


def many(items: Mapping[str, Any], description: str) -> Schema:
    """Describe a list."""
    return {"type": "array", "items": items, "description": description}


def numbers(description: str, example: Mapping[str, float]) -> Schema:
    """Describe an object of numbers whose names vary."""
    values = {"type": "number"}
    return {"type": "object", "additionalProperties": values, "description": description, "examples": [dict(example)]}


def or_null(schema: Mapping[str, Any]) -> Schema:
    """Describe what may be null instead."""
    told = {name: schema[name] for name in ("description", "examples") if name in schema}
    return told | {"anyOf": [{name: schema[name] for name in schema if name not in told}, {"type": "null"}]}


def answer(schema: Mapping[str, Any], *errors: int) -> Responses:
    """Describe what a route answers as JSON, and the statuses of its errors besides those that all like it have."""
    content = {"application/json": {"schema": schema}}
    return {200: {"description": "It worked.", "content": content}, **statuses(*errors)}


def statuses(*errors: int) -> Responses:
    """Describe errors by their status alone; what they look like is as for all routes of the server."""
    return {status: {"description": STATUS_MEANS[status]} for status in errors}


ENGINE_ERRORS = (503,)  # of a route that asks the engine
DRAWING_ERRORS = (404, 422, 429, 503, 504)  # of a route that draws
TEXT = {"type": "string"}
MADE_FOR: Schema = object_schema(
    {
        "steps": or_null(integer("Denoise steps.", 4)),
        "sigmas": or_null(many({"type": "number", "examples": [1.0]}, "The noise level of each, before mu shifts it.")),
        "mu": or_null(number("The shift of the schedule.", 0.0)),
        "guidance": or_null(number("On Krea's scale: 0 is off.", 0.0)),
    }
)
# What an answer with images says, besides them.
DRAWN: dict[str, Schema] = {
    "created": integer("When, in seconds since 1970.", 1_790_000_000),
    "request_id": text("As in the header X-Request-ID.", "7f3c9a"),
    "seed": integer("The seed of the first image.", 7),
    "size": text("Width and height of the images in pixels.", "512x512"),
    "output_format": text("The kind of the files: png, jpeg or webp.", "png"),
    "timings": numbers("Seconds, by what the request did or waited for.", {"queue": 0.1, "total": 2.5}),
    "warnings": many(TEXT, "What was done otherwise than one may have expected, in sentences."),
    "explanation": {"type": "object", "description": "Where the time went, if the request asked for it."},
    "made_for": MADE_FOR | {"description": "What LoRAs have decided, if the request did not say it."},
}
SOMETIMES = ("explanation", "made_for")  # of it
_KINDS = ("invalid_request_error", "rate_limit_error", "server_error", "image_generation_user_error")
ERROR = object_schema(
    {
        "message": text("What is wrong, and what is allowed.", "steps must be between 1 and 200, got 5000"),
        "type": {"type": "string", "enum": _KINDS, "description": "Whose fault it is."},
        "param": or_null(text("The parameter to blame, if one is.", "steps")),
        "code": text("What kind of error it is.", "invalid_parameter"),
        "request_id": text("As in the header X-Request-ID.", "7f3c9a"),
    }
)
ERROR_SCHEMA: dict[str, Any] = {
    "description": "What is wrong, and with which parameter.",
    "content": {"application/json": {"schema": object_schema({"error": ERROR})}},
}
IDEMPOTENCY_KEY = Header(
    alias="Idempotency-Key",
    description="A request with the same key and body, sent again, joins the first or gets its answer. "
    f"1 to {LONGEST_IDEMPOTENCY_KEY} printable ASCII characters.",
)
# A picture for examples: eight by eight pixels, blue and red.
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAGklEQVR42mMUETnBAANb"
    "GHzgbCYGHGBwSgAAemsCAPDi7qkAAAAASUVORK5CYII="
)
