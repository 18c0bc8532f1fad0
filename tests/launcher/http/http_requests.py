"""HTTP requests byte by byte, and the errors that are answered."""

from __future__ import annotations

from typing import Any

import httpx

from tests.launcher.http_servers import PATH

NOWHERE = "ipc:///nonexistent/krea2"
JSON = {"Content-Type": "application/json"}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    return error


def head(address: httpx.URL, *fields: bytes) -> bytes:
    start = f"POST {PATH} HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/json\r\n"
    return start.encode() + b"".join(fields) + b"\r\n"
