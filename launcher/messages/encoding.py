"""Messages as msgpack frames. Decoding is strict, and nothing is ever pickled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from typing import Any

import msgspec

from engine.errors import ArgumentError, Krea2Error, ServerError
from launcher.logs import log_exception
from launcher.messages.client_messages import PROTOCOL_VERSION, Generate, Reply, Request, is_request_id
from launcher.messages.limits import Limits
from launcher.parameters.values import PICTURES

MAX_REQUEST_BYTES = 256 * 1024  # of a message's header to the front-end; the largest prompts fit in many times

_TYPE_MISMATCH = re.compile(r"Expected `(?P<expected>[^`]+)`, got `(?P<found>[^`]+)`")
_FIELD = re.compile(r"(?P<problem>.*) - at `\$\.(?P<path>(?P<name>\w+)[^`]*)`")
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a map",
    "null": "null",
    "None": "null",
}

encode = msgspec.msgpack.Encoder().encode
decode_reply = msgspec.msgpack.Decoder(Reply).decode  # raises `msgspec.DecodeError`
_decode_request = msgspec.msgpack.Decoder(Request).decode


class Files(dict[str, bytes]):
    """The files of a request's pictures, by their names."""

    @cached_property
    def digest(self) -> bytes:
        """A digest of all, whatever their order; in a thread at first, since large ones take a while."""
        return sha256(b"".join(name.encode() + sha256(file).digest() for name, file in sorted(self.items()))).digest()


class MessageError(Exception):
    """A message that cannot be understood: the error to reply, and to which request, if that could be read."""

    def __init__(self, request_id: str | None, error: Krea2Error) -> None:
        super().__init__(error.message)
        self.request_id = request_id
        self.error = error


def most_frame_bytes(limits: Limits) -> int:
    """Say how long a frame to a front-end may be: one that is too long by less than its length is answered, not cut
    off."""
    return 2 * max(limits.max_image_bytes, Limits.max_image_bytes)


def decode_request(frame: bytes) -> Request:
    """Decode a client's message. Raises `MessageError`, and nothing else, for whatever does not fit."""
    complaint = ""
    if not frame:
        raise MessageError(None, ArgumentError("the first frame is empty: it is the header (connect a DEALER, no REQ)"))
    if len(frame) > MAX_REQUEST_BYTES:
        raise MessageError(None, ArgumentError(f"a header must be at most {MAX_REQUEST_BYTES} bytes, got {len(frame)}"))
    try:
        message: Request = _decode_request(frame)
        if message.version == PROTOCOL_VERSION:
            return message
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors, and so is bad UTF-8
        complaint = str(error)
    version, request_id = _peek(frame)
    if version in (None, PROTOCOL_VERSION):
        raise MessageError(request_id, _explain_malformed(complaint))
    sent = str(version)[:40]
    wrong = ServerError(f"this server speaks protocol version {PROTOCOL_VERSION}, the client sent version {sent}")
    raise MessageError(request_id, wrong)


def name_files(message: Request, files: Sequence[bytes], limits: Limits) -> Files:
    """Name the files in the binary frames behind a message by the `pictures` that they are. There may be none, as
    behind a request that is sent again. Raises `ArgumentError` for others than it says that there are."""
    names = message.pictures if isinstance(message, Generate) else ()
    if len({*names}) < len(names) or not {*names} <= {*PICTURES}:
        shown = ", ".join(map(repr, names[: len(PICTURES) + 1]))[:80]
        allowed = f"different ones of {', '.join(PICTURES)}"
        raise ArgumentError(f"pictures must be {allowed}, got {shown}", parameter="pictures")
    if names and "image" not in names:
        raise ArgumentError("mask needs the image that it is for", parameter="mask")
    if len(files) > len(names):
        kind = type(message).__struct_config__.tag
        told = f"pictures names {len(names)}" if isinstance(message, Generate) else f"a {kind} message has none"
        raise ArgumentError(f"{len(files)} binary frames follow the header, and {told}", parameter="pictures")
    if files and len(files) < len(names):
        missing = names[len(files)]
        raise ArgumentError(f"{missing} is one of pictures, and its file did not follow the header", parameter=missing)
    for name, file in zip(names, files, strict=False):
        if not 0 < len(file) <= limits.max_image_bytes:
            raise ArgumentError.of(name, f"a file of 1 to {limits.max_image_bytes} bytes", len(file))
    return Files(zip(names, files, strict=False))


def encode_request(message: Request) -> bytes:
    """Encode a client's message. Raises `ArgumentError` for values that msgpack cannot carry, and for its size."""
    try:
        frame = msgspec.msgpack.encode(message, enc_hook=_plain_number)
    except UnicodeEncodeError:
        raise ArgumentError("prompt must be valid Unicode text, got lone surrogates", parameter="prompt") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ArgumentError(f"a parameter has a type that is not allowed: {error}") from None
    if not frame:
        raise MessageError(None, ArgumentError("the first frame is empty: it is the header (connect a DEALER, no REQ)"))
    if len(frame) > MAX_REQUEST_BYTES:
        raise ArgumentError(f"a request must be at most {MAX_REQUEST_BYTES} bytes, got {len(frame)}")
    return frame


def describe(error: BaseException) -> str:
    """Describe an unexpected exception in one line."""
    first_line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def as_krea2_error(error: Exception) -> Krea2Error:
    """Return the error that clients are told of; one that is a mistake of ours is logged, too."""
    if isinstance(error, Krea2Error):
        return error
    log_exception(error)
    return Krea2Error(f"front-end: {describe(error)}")


def _plain_number(value: Any) -> Any:
    """Turn numpy's numbers, which people use as seeds, into Python's."""
    if hasattr(value, "__index__"):
        return value.__index__()
    if hasattr(value, "__float__"):
        return value.__float__()
    raise TypeError(f"got a value of type {type(value).__name__}")


def _peek(frame: bytes) -> tuple[object, str | None]:
    """Read version and request_id of a message that does not decode otherwise, each None if it cannot be read."""
    with suppress(ValueError, RecursionError, TypeError):
        loose = msgspec.msgpack.decode(frame)
        if isinstance(loose, Mapping):
            request_id = loose.get("request_id")
            return loose.get("version"), request_id if is_request_id(request_id) else None
    return None, None


def _explain_malformed(complaint: str) -> ArgumentError:
    """Make the error to reply from msgspec's complaint, about the field that it names if it names one."""
    field = _FIELD.fullmatch(complaint)
    mismatch = None if field is None else _TYPE_MISMATCH.fullmatch(field["problem"])
    if field is None or mismatch is None:
        name = field["name"] if field is not None and field["name"] != "type" else None
        return ArgumentError(f"the message does not follow the protocol: {complaint}", parameter=name)
    allowed = " or ".join(_TYPE_NAMES.get(name, name) for name in mismatch["expected"].split(" | "))
    found = _TYPE_NAMES.get(mismatch["found"], mismatch["found"])
    return ArgumentError(f"{field['path']} must be {allowed}, got {found}", parameter=field["name"])
