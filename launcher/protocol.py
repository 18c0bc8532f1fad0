"""What clients and the front-end say to each other: a msgspec struct as a msgpack frame, then binary frames.

Decoding is strict, and nothing is ever pickled. What our own processes tell each other is in `internal.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import msgspec

from engine.errors import ArgumentError, Krea2Error, ServerError

PROTOCOL_VERSION = 1
MAX_REQUEST_BYTES = 256 * 1024  # of one message to the front-end; two prompts of the largest size fit many times over

RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower, forbid_unknown_fields=True):
    """Base of all messages; each is tagged with its name in lower case."""


class _Versioned(Message, frozen=True, kw_only=True):
    version: int = PROTOCOL_VERSION


# ---- client → front-end


class Generate(_Versioned, frozen=True, kw_only=True):
    """Make images. Sending it twice with the same `request_id` is harmless. None means the checkpoint's default.

    preview_every: denoise steps of an image between its previews; None for no previews.
    """

    request_id: RequestId
    prompt: str
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    mu: float | None = None
    width: int | None = None
    height: int | None = None
    num_images: int = 1
    priority: int = 0
    timeout_s: float | None = None
    output_format: str = "png"
    metadata: bool = True
    preview_every: int | None = None


class Parameters(TypedDict, total=False):
    """The keywords of `generate` and `stream`: the fields of `Generate`."""

    request_id: str
    seed: int | None
    steps: int | None
    guidance: float | None
    negative_prompt: str | None
    mu: float | None
    width: int | None
    height: int | None
    num_images: int
    priority: int
    timeout_s: float | None
    output_format: str
    metadata: bool
    preview_every: int | None


class Cancel(_Versioned, frozen=True, kw_only=True):
    """Forget a request; its `Failed` with code `cancelled` comes at once. Unknown and finished ones are ignored."""

    request_id: RequestId


class Acknowledge(_Versioned, frozen=True, kw_only=True):
    """The client has every image of the request, or its failure: the front-end need not keep them."""

    request_id: RequestId


class Status(_Versioned, frozen=True, kw_only=True):
    """Asks for a `StatusReply`."""


class Metrics(_Versioned, frozen=True, kw_only=True):
    """Asks for a `MetricsReply`."""


class Ping(_Versioned, frozen=True, kw_only=True):
    """Asks for a `Pong`, and renews the client's lease, as every message does."""


Request = Generate | Cancel | Acknowledge | Status | Metrics | Ping

# ---- front-end → client


class Accepted(_Versioned, frozen=True, kw_only=True):
    """The request is queued behind `position` images; `estimated_s` until it is done, once speeds are known.

    Comes again while it waits, when its position has changed, and with a greater `attempt` when it starts over.
    """

    request_id: str
    position: int
    estimated_s: float | None
    attempt: int


class Progress(_Versioned, frozen=True, kw_only=True):
    """`step` of `steps` denoise steps are done, over all images of the request. Goes back when `attempt` goes up.

    `estimated_s` until the request is done, once speeds are known.
    """

    request_id: str
    step: int
    steps: int
    estimated_s: float | None
    attempt: int


class Preview(_Versioned, frozen=True, kw_only=True):
    """What image `index` may become, after `step` of its own `steps`, before a binary frame with a small JPEG file."""

    request_id: str
    index: int
    step: int
    steps: int
    attempt: int


class Image(_Versioned, frozen=True, kw_only=True):
    """Image `index` of `num_images`, before a binary frame with the finished file. Timings are of the whole request."""

    request_id: str
    index: int
    num_images: int
    seed: int
    width: int
    height: int
    output_format: str
    warnings: tuple[str, ...]
    timings: dict[str, float]
    attempt: int


class Failed(_Versioned, frozen=True, kw_only=True):
    """The end of a request without its images; without a `request_id`, the answer to a message nobody understood.

    `retry_after_s`: when the same may work, where that is known.
    """

    request_id: str | None
    code: str
    message: str
    parameter: str | None = None
    retry_after_s: float | None = None


class StatusReply(_Versioned, frozen=True, kw_only=True):
    """What the front-end is doing."""

    model: str
    tp: int
    device: str | None
    ready: bool
    uptime_s: float
    waiting: int
    running: int
    done: int
    failed: int
    dropped_messages: int
    restarts: int
    rank_memory: tuple[dict[str, int], ...]


class MetricsReply(_Versioned, frozen=True, kw_only=True):
    """The answer to `Metrics`, before a binary frame in Prometheus' text format."""


class Pong(_Versioned, frozen=True, kw_only=True):
    """The answer to `Ping`."""


class Closing(_Versioned, frozen=True, kw_only=True):
    """The front-end ends: the last message a client gets."""

    code: str
    message: str


Reply = Accepted | Progress | Preview | Image | Failed | StatusReply | MetricsReply | Pong | Closing

# ---- encoding and decoding

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
        raise MessageError(request_id, _explain(str(error))) from None
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


_TYPE_MISMATCH = re.compile(r"Expected `(?P<expected>[^`]+)`, got `(?P<found>[^`]+)` - at `\$\.(?P<name>\w+)`")
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "null": "null",
    "None": "null",
}


def _explain(problem: str) -> ArgumentError:
    """msgspec's complaint in the words of the other errors about parameters."""
    match = _TYPE_MISMATCH.fullmatch(problem)
    if match is None:
        return ArgumentError(f"the message does not follow the protocol: {problem}")
    allowed = " or ".join(_TYPE_NAMES.get(name, name) for name in match["expected"].split(" | "))
    found = _TYPE_NAMES.get(match["found"], match["found"])
    return ArgumentError(f"{match['name']} must be {allowed}, got {found}", parameter=match["name"])
