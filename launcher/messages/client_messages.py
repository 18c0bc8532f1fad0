"""What clients and the front-end say to each other: a msgspec struct as a msgpack frame, then binary frames.

`encoding.py` makes frames of them; our own processes have `rank_messages.py` and `configs.py`. Sizes are in pixels,
times in seconds.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from launcher.explanation import Explanation
from launcher.messages.message_parts import (
    CacheChoice,
    Computed,
    LoadedLora,
    LoraChoice,
    MadeFor,
    MergedLora,
    Outpaint,
    Stage,
)

PROTOCOL_VERSION = 5
LONGEST_REQUEST_ID = 64  # characters
SHOWN_ID = 50  # characters of an HTTP request's id that the engine's begins with
RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_REQUEST_ID)]
LONGEST_IDEMPOTENCY_KEY = 255  # characters
MODERATIONS = ("auto", "low")  # the two sets of the filters' thresholds, by OpenAI's names
IdempotencyKey = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_IDEMPOTENCY_KEY, pattern=r"^[ -~]*\Z")]


def is_request_id(value: object) -> bool:
    """Whether a value can be the id of a request."""
    return isinstance(value, str) and 1 <= len(value) <= LONGEST_REQUEST_ID


def is_idempotency_key(value: str) -> bool:
    """Whether a text can be an idempotency key."""
    return 1 <= len(value) <= LONGEST_IDEMPOTENCY_KEY and value.isascii() and value.isprintable()


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower, forbid_unknown_fields=True):
    """Base of all messages; each is tagged with its name in lower case."""


class _Versioned(Message, frozen=True, kw_only=True):
    version: int = msgspec.field(default_factory=lambda: PROTOCOL_VERSION)  # so that `omit_defaults` leaves it in


class _Reply(_Versioned, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """What a newer server adds is left out."""


# ---- client → front-end


class Generate(_Versioned, frozen=True, kw_only=True, omit_defaults=True):
    """Make images. Sending it twice with the same `request_id` is harmless. None means the checkpoint's default.

    What has its default is not sent, so that an older server understands all that asks for nothing new.

    seed: -1 is drawn, too. output_compression: the quality of JPEG and WebP files; 100 is best. preview_every: denoise
    steps of an image between its previews; None for no previews. idempotency_key: a request of the same caller with the
    same one joins this one, or gets its answer. caller: whose request a process of the server's own sends; from others
    it is an error. explain: the last `Image` is to say where the time went. moderation: which of the filters' two
    sets of thresholds is applied. user: whom the client asks for, for the audit log. A flat record, as the protocol's.

    pictures: what the binary frames behind it are, in this order: the file of an `image` to begin from, and of a `mask`
    of what is repainted. strength: how much of it changes, 0 to 1. strength_steps: whether all `steps` are run ("full")
    or as many as the strength leaves ("partial"). mask_crop: pixels around the masked part, which alone is drawn then.
    mask_feather: pixels over which what is drawn fades into what stays.

    sigmas: the noise level at which each step begins, before mu shifts it. cache: which steps may be saved: `off`,
    `quality`, `fast`, or how. guidance_from, guidance_until: of the schedule, from 0 to 1, the part in which the image
    is guided; outside it the negative prompt is not computed, and guidance is `off` or the `last` one is used again
    (guidance_outside).
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
    output_compression: int | None = None
    metadata: bool = True
    preview_every: int | None = None
    loras: tuple[LoraChoice, ...] = ()
    idempotency_key: IdempotencyKey | None = None
    caller: str | None = None
    explain: bool = False
    pictures: tuple[str, ...] = ()
    strength: float | None = None
    strength_steps: str = "partial"
    outpaint: Outpaint | None = None
    mask_crop: int | None = None
    mask_feather: int | None = None
    moderation: str = "auto"
    user: str | None = None
    cache: str | CacheChoice = "off"
    guidance_from: float = 0.0
    guidance_until: float = 1.0
    guidance_outside: str = "off"
    sigmas: tuple[float, ...] = ()


class Cancel(_Versioned, frozen=True, kw_only=True):
    """Forget a request; its `Failed` with code `cancelled` comes at once. Unknown and finished ones are ignored."""

    request_id: RequestId


class Acknowledge(_Versioned, frozen=True, kw_only=True):
    """Says that the client has every image of the request, or its failure: the front-end need not keep them."""

    request_id: RequestId


class LoadLora(_Versioned, frozen=True, kw_only=True):
    """Load a LoRA file for requests to choose by `name`, with this `strength` where they give none.

    path: in the folder that the server's `--lora-dir` names, or `demo-outlined`, the demos' own.
    """

    request_id: RequestId
    name: str
    path: str
    strength: float = 1.0


class UnloadLora(_Versioned, frozen=True, kw_only=True):
    """Let requests choose a LoRA no more; it is forgotten when no request uses it. Only with a `--lora-dir`."""

    request_id: RequestId
    name: str


class ListLoras(_Versioned, frozen=True, kw_only=True):
    """Asks for the `Loras` of the server."""

    request_id: RequestId


class Status(_Versioned, frozen=True, kw_only=True):
    """Asks for a `StatusReply`."""


class Metrics(_Versioned, frozen=True, kw_only=True):
    """Asks for a `MetricsReply`."""


class Ping(_Versioned, frozen=True, kw_only=True):
    """Asks for a `Pong`, and renews the client's lease, as every message does."""


LoraRequest = LoadLora | UnloadLora | ListLoras
Request = Generate | Cancel | Acknowledge | LoraRequest | Status | Metrics | Ping

# ---- front-end → client


class Accepted(_Reply, frozen=True, kw_only=True):
    """The request is queued behind `position` images; `estimated_s` until it is done, once speeds are known.

    Comes again when its position has changed, and with a greater `attempt` when it starts over. warnings: those that
    its images will have.
    """

    request_id: str
    position: int
    estimated_s: float | None
    attempt: int
    warnings: tuple[str, ...] = ()


class Progress(_Reply, frozen=True, kw_only=True):
    """`step` of `steps` denoise steps are done, over all images of the request. Goes back when `attempt` goes up.

    estimated_s: until the request is done, once speeds are known.
    """

    request_id: str
    step: int
    steps: int
    estimated_s: float | None
    attempt: int


class Preview(_Reply, frozen=True, kw_only=True):
    """What image `index` may become, after `step` of its own `steps`, before a binary frame with a small JPEG file."""

    request_id: str
    index: int
    step: int
    steps: int
    attempt: int


class Image(_Reply, frozen=True, kw_only=True):
    """Image `index` of `num_images`, before a binary frame with its file. Timings, explanation: of the request.

    computed: what was computed for it, where steps may have been saved or left out. made_for: what LoRAs have decided
    of its steps and guidance, which the request did not say.
    """

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
    explanation: Explanation | None = None
    text_tokens: int = 0  # of prompt and negative prompt
    image_tokens: int = 0
    computed: Computed | None = None
    made_for: MadeFor | None = None


class Failed(_Reply, frozen=True, kw_only=True):
    """The end of a request without its images; without a `request_id`, the reply to a message not understood."""

    request_id: str | None
    code: str
    message: str
    parameter: str | None = None
    retry_after_s: float | None = None  # after which the same may work, where that is known
    category: str | None = None  # of what a content filter has blocked


class Loras(_Reply, frozen=True, kw_only=True):
    """What is loaded: the reply to `LoadLora` once the ranks have it, to `UnloadLora` and to `ListLoras`.

    loadable: whether clients may load and unload them. left_out: what was not read of a file, in words, by the LoRA's
    name, and of merged ones by the file; made_for: the steps that it needs, in the same way.
    """

    request_id: str
    loras: tuple[LoadedLora, ...]
    merged: tuple[MergedLora, ...]
    loadable: bool
    left_out: dict[str, str] = msgspec.field(default_factory=dict)
    made_for: dict[str, MadeFor] = msgspec.field(default_factory=dict)


class StatusReply(_Reply, frozen=True, kw_only=True):
    """What the front-end is doing: requests by what became of them, bytes of each rank by what they hold."""

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
    loras: tuple[LoadedLora, ...]
    merged_loras: tuple[MergedLora, ...]
    memory_plan: tuple[str, ...]
    sp: int = 1
    cfg_parallel: bool = False
    quarantined: tuple[str, ...] = ()
    not_ready: str | None = None  # why
    stage: Stage | None = None  # while it starts
    backlog_s: float | None = None  # seconds of work ahead of the ranks; None while no speeds are known
    given_up: bool = False  # requests fail at once, since ranks are lost again and again or GPUs have failed


class MetricsReply(_Reply, frozen=True, kw_only=True):
    """The reply to `Metrics`, before a binary frame in Prometheus' text format."""


class Pong(_Reply, frozen=True, kw_only=True):
    """The reply to `Ping`."""


class Closing(_Reply, frozen=True, kw_only=True):
    """The front-end ends: the last message a client gets."""

    code: str
    message: str


Reply = Accepted | Progress | Preview | Image | Failed | Loras | StatusReply | MetricsReply | Pong | Closing
