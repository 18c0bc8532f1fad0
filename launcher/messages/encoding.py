"""Messages as msgpack frames. Decoding is strict, and nothing is ever pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from engine.errors import ArgumentError, Krea2Error, ServerError
from launcher.messages.client_messages import PROTOCOL_VERSION, Reply, Request
from launcher.messages.malformed import explain_malformed

MAX_REQUEST_BYTES = 256 * 1024  # of one message to the front-end; two prompts of the largest size fit many times over

encode = msgspec.msgpack.Encoder().encode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
_decode_request = msgspec.msgpack.Decoder(Request).decode


class MessageError(Exception):
    """A message that cannot be understood: what to answer, and to which request, if that much could be read."""

    def __init__(self, request_id: str | None, error: Krea2Error) -> None:
        super().__init__(error.message)
        self.request_id = request_id
        self.error = error


def decode_request(frame: bytes) -> Request:
    """Decode a client's message. Raises `MessageError`, and nothing else, for whatever does not fit."""
    try:
        message: Request = _decode_request(frame)
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors, and so is bad UTF-8
        version, request_id = _peek(frame)
        if version not in (None, PROTOCOL_VERSION):
            raise MessageError(request_id, _wrong_version(version)) from None
        raise MessageError(request_id, explain_malformed(str(error))) from None
    if message.version != PROTOCOL_VERSION:
        raise MessageError(getattr(message, "request_id", None), _wrong_version(message.version))
    return message


def encode_request(message: Request) -> bytes:
    """Encode a client's message. Raises `ArgumentError` for values that msgpack cannot carry, and for its size."""
    try:
        frame = msgspec.msgpack.encode(message, enc_hook=_plain_number)
    except UnicodeEncodeError:
        raise ArgumentError("prompt must be valid Unicode text, got lone surrogates", parameter="prompt") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ArgumentError(f"a parameter has a type that is not allowed: {error}") from None
    if len(frame) > MAX_REQUEST_BYTES:
        raise ArgumentError(f"a request must be at most {MAX_REQUEST_BYTES} bytes, got {len(frame)}")
    return frame


def describe(error: BaseException) -> str:
    """An unexpected exception in one line."""
    first_line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def _plain_number(value: Any) -> Any:
    """numpy's numbers, which people use as seeds, as Python's."""
    if hasattr(value, "__index__"):
        return value.__index__()
    if hasattr(value, "__float__"):
        return value.__float__()
    raise TypeError(f"got a value of type {type(value).__name__}")


def _peek(frame: bytes) -> tuple[object, str | None]:
    """version and request_id of a message that does not decode otherwise, as far as they can be read."""
    try:
        loose = msgspec.msgpack.decode(frame)
    except (ValueError, RecursionError, TypeError):
        return None, None
    if not isinstance(loose, Mapping):
        return None, None
    request_id = loose.get("request_id")
    known = isinstance(request_id, str) and 0 < len(request_id) <= 64
    return loose.get("version"), request_id if known else None


def _wrong_version(version: object) -> Krea2Error:
    shown = str(version)[:40]
    return ServerError(f"this server speaks protocol version {PROTOCOL_VERSION}, the client sent version {shown}")
