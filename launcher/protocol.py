"""What travels between the processes: msgspec structs, each one msgpack frame, then binary frames.

Three conversations: clients and the front-end (`Generate` … `Failed`), the front-end and its ranks (`Hello` …
`RankFailed`), and the configuration that a process gets on its stdin. Decoding is strict, and nothing is ever pickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict, TypeVar

import msgspec

from engine.config import EngineConfig
from engine.errors import ArgumentError, CheckpointError, Krea2Error, ServerError, error_from_code
from engine.step import Step, StepTimes
from launcher.limits import Limits

PROTOCOL_VERSION = 1
MAX_REQUEST_BYTES = 256 * 1024  # of one message to the front-end; two prompts of the largest size fit many times over

RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower, forbid_unknown_fields=True):
    pass


class _Versioned(_Message, frozen=True, kw_only=True):
    version: int = PROTOCOL_VERSION


# ---- client → front-end


class Generate(_Versioned, frozen=True, kw_only=True):
    """Make images. Sending it twice with the same `request_id` is harmless. None means the checkpoint's default."""

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


class Cancel(_Versioned, frozen=True, kw_only=True):
    """Forget a request; its `Failed` with code `cancelled` comes at once. Unknown and finished ones are ignored."""

    request_id: RequestId


class Acknowledge(_Versioned, frozen=True, kw_only=True):
    """The client has every image of the request, or its failure: the front-end need not keep them."""

    request_id: RequestId


class Status(_Versioned, frozen=True, kw_only=True):
    """Asks for a `StatusReply`."""


class Ping(_Versioned, frozen=True, kw_only=True):
    """Asks for a `Pong`, and renews the client's lease, as every message does."""


Request = Generate | Cancel | Acknowledge | Status | Ping

# ---- front-end → client


class Accepted(_Versioned, frozen=True, kw_only=True):
    """The request is queued behind `position` images; `estimated_s` until it is done, once speeds are known."""

    request_id: str
    position: int
    estimated_s: float | None
    attempt: int


class Progress(_Versioned, frozen=True, kw_only=True):
    """`step` of `steps` denoise steps are done, over all images of the request. Goes back when `attempt` goes up."""

    request_id: str
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
    """The end of a request without its images; without a `request_id`, the answer to a message nobody understood."""

    request_id: str | None
    code: str
    message: str
    parameter: str | None = None


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
    rank_memory: tuple[dict[str, int], ...]


class Pong(_Versioned, frozen=True, kw_only=True):
    """The answer to `Ping`."""


class Closing(_Versioned, frozen=True, kw_only=True):
    """The front-end ends: the last message a client gets."""

    code: str
    message: str


Reply = Accepted | Progress | Image | Failed | StatusReply | Pong | Closing

# ---- front-end → rank


class Load(_Message, frozen=True, kw_only=True):
    """Load the checkpoint and answer `Ready`."""

    engine: EngineConfig
    timeout_s: float


class Execute(_Message, frozen=True, kw_only=True):
    """Execute a step, and answer `StepDone`."""

    step: Step


Command = Load | Execute

# ---- rank → front-end


class Hello(_Message, frozen=True, kw_only=True):
    """The rank can hear."""

    rank: int


class Ready(_Message, frozen=True, kw_only=True):
    """The rank has its weights."""

    rank: int
    device: str
    memory: dict[str, int]


class StepDone(_Message, frozen=True, kw_only=True):
    rank: int
    number: int
    times: StepTimes


class Decoded(_Message, frozen=True, kw_only=True):
    """An image, before a binary frame of height · width · 3 bytes."""

    rank: int
    job_id: int
    width: int
    height: int
    decode_s: float


class RankFailed(_Message, frozen=True, kw_only=True):
    """The rank cannot go on. It stays alive for a moment, so that its peers do not fail before it is heard."""

    rank: int
    code: str
    message: str
    parameter: str | None


Report = Hello | Ready | StepDone | Decoded | RankFailed

# ---- what a process gets on its stdin, and what the front-end answers on its stdout


class FrontendConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a front-end. `rpc` None is a socket in the run folder; `external_ranks`: torchrun starts them."""

    engine: EngineConfig
    run_folder: str
    rpc: str | None = None
    limits: Limits = msgspec.field(default_factory=Limits)
    external_ranks: bool = False
    start_timeout_s: float = 600.0
    step_timeout_s: float = 300.0
    lease_s: float = 20.0


class RankConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which rank a process is, and where its front-end listens. What to load comes over the wire.

    `store_file` is where spawned ranks meet; None under torchrun, which has a place of its own.
    """

    rank: int
    world_size: int
    run_folder: str
    store_file: str | None


def ranks_address(run_folder: str) -> str:
    return f"ipc://{run_folder}/ranks"


def lifeline_path(run_folder: str) -> str:
    """The unix socket that takes the place of a stdin pipe between the front-end and ranks it did not start."""
    return f"{run_folder}/lifeline"


def route(rank: int) -> bytes:
    """The ZMQ routing id of a rank."""
    return b"rank-%d" % rank


class Started(_Message, frozen=True, kw_only=True):
    """The ranks are ready, and clients may connect."""

    address: str


class Ended(_Message, frozen=True, kw_only=True):
    """Why the front-end ends, if not because it was told to."""

    code: str
    message: str
    parameter: str | None


FrontendReport = Started | Ended

# ---- encoding and decoding

T = TypeVar("T")

encode = msgspec.msgpack.Encoder().encode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
decode_frontend_report = msgspec.msgpack.Decoder(FrontendReport).decode
_decode_request = msgspec.msgpack.Decoder(Request).decode


def decode_config(data: bytes, kind: type[T]) -> T:
    return msgspec.msgpack.decode(data, type=kind)


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


def received_error(code: str, message: str, parameter: str | None = None) -> Krea2Error:
    """The error that was sent as code, message and parameter."""
    if code == CheckpointError.code:  # its own constructor composes a message; this one is composed
        error = CheckpointError.__new__(CheckpointError)
        Krea2Error.__init__(error, message)
        return error
    return error_from_code(code, message, parameter)


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
