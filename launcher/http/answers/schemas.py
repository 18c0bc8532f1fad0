"""Pieces of the OpenAPI description that several routes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def object_schema(properties: Mapping[str, Any], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Describe an object, of whose properties only the `optional` ones may be missing."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


TEXT = {"type": "string"}
_OR_NULL = {"anyOf": [TEXT, {"type": "null"}]}
_ERROR = object_schema({"message": TEXT, "type": TEXT, "param": _OR_NULL, "code": TEXT, "request_id": TEXT})
ERROR_SCHEMA: dict[str, Any] = {
    "description": "What is wrong, and with which parameter.",
    "content": {"application/json": {"schema": object_schema({"error": _ERROR})}},
}
