"""The one request behind every API: parameters go in by our names, images and what they were made with come out."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, error_from_code
from launcher.client.results import Event, Result, Usage
from launcher.http.answers.link import Link
from launcher.messages.client_messages import (
    LONGEST_IDEMPOTENCY_KEY,
    SHOWN_ID,
    Accepted,
    Generate,
    is_idempotency_key,
)
from launcher.messages.configs import HttpConfig
from launcher.messages.message_parts import CacheChoice, Outpaint
from launcher.messages.parameter_names import ALIASES, in_own_names, read_size
from launcher.parameters.values import PICTURES
from launcher.pictures.wanted import NO_PICTURES
from launcher.requests.check import CheckedRequest, check
from launcher.requests.usual_sizes import describe_own_size, own_size

# What may be given to be drawn: the parameters of a request, by any of their names.
PARAMETERS = frozenset(
    {*Generate.__struct_fields__, *ALIASES, "size"} - {"request_id", "idempotency_key", "caller", "pictures"}
)
_PLAIN_NAME = re.compile(r"[\w./:@+-]{1,80}", re.ASCII)  # of a model, which a shell takes as it is
_LONGEST_NAME = 512  # characters of any model's, which each event of a stream repeats


@dataclass(frozen=True)
class Drawing:
    """A request on its way: what it became, and its events so far and to come.

    request_id: as the client knows it, which is not the engine's. warnings: those known before it was sent, which the
    result does not have. first: the event that came before the `later` ones.
    """

    request_id: str
    checked: CheckedRequest
    warnings: tuple[str, ...]
    first: Event
    later: AsyncGenerator[Event, None]

    @property
    def has_picture(self) -> bool:
        """Whether the images are drawn over a picture."""
        return self.checked.strength is not None

    def picture_tokens(self, usage: Usage, num_images: int) -> int:
        """Tokens of the picture that so many images were drawn over, which has as many as each of them."""
        return usage.image_tokens // num_images if self.has_picture else 0

    @property
    def size(self) -> str:
        """Width and height of the images as answers have them before one is there: a picture may decide."""
        return "auto" if self.has_picture else f"{self.checked.width}x{self.checked.height}"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of its answer: an answer that comes again says so."""
        return {} if isinstance(self.first, Accepted) else {"Idempotent-Replayed": "true"}

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield all events, the last of which is the `Result`. Closing it early cancels the request."""
        async with aclosing(self.later):
            yield self.first
            async for event in self.later:
                yield event

    async def result(self) -> Result:
        """Wait for the result."""
        async with aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, Result):
                    return event
        raise AssertionError("a request's last event is its result")


class Studio:
    """Where every API has its images drawn, by the engine behind `link`."""

    def __init__(self, config: HttpConfig, model: ModelConfig, link: Link) -> None:
        self.config, self.model = config, model
        self._link = link

    async def draw(
        self,
        request: Request,
        given: Mapping[str, Any],
        *,
        files: dict[str, bytes] | None = None,
        partial_images: int | None = None,
        idempotency_key: str | None = None,
        progress: bool = False,
    ) -> Drawing:
        """Send a request to the engine; returns once it was accepted. An error that comes at once is raised here.

        given: parameters by our names or by `ALIASES`, and `size`; None counts as not given. files: pictures to draw
        over, by parameter, which are gone from there when this returns. partial_images: how many previews each image is
        to have at most, where `given` has no preview_every. progress: whether its events need `Progress`. Raises
        `Krea2Error`; the errors' parameters have our names.
        """
        request_id = request.state.request_id
        # The client's own id may come again: from proxies that give one to many requests, and from clients that
        # hang up and try again, and would get the end of the request that they gave up.
        message, warnings = to_generate(given, f"{request_id[:SHOWN_ID]}.{secrets.token_hex(4)}", self.model)
        if files:
            if not self.config.engine.image_input:
                raise ArgumentError(NO_PICTURES, parameter="image")
            message = msgspec.structs.replace(message, pictures=tuple(name for name in PICTURES if name in files))
        check_idempotency_key(idempotency_key)
        # The front-end would say the same, but what the previews need is known here only afterwards.
        checked = check(message, self.model, self.config.limits, drawn_seed=0)
        if message.preview_every is None and partial_images:
            every = max(1, math.ceil(checked.steps / (partial_images + 1)))  # of strength 0 there is no step
            message = msgspec.structs.replace(message, preview_every=every)
        message = msgspec.structs.replace(message, idempotency_key=idempotency_key)
        files = {} if files is None else files
        if self.config.client_name is not None:  # or else the front-end would not believe it
            message = msgspec.structs.replace(message, caller=request.state.key_name)
        events = self._link.follow(message, files, progress=progress)
        first = await anext(events)
        files.clear()  # which the front-end has: nobody else is to hold them while they are drawn over
        return Drawing(request_id, checked, warnings, first, events)

    def check_model(self, name: str | None) -> str:
        """Return what an answer calls the model that a request names: as it does, or the first name where that is none.

        Raises `model_not_found` for a name that is not served, and `ArgumentError` for one that none can be.
        """
        served = self.config.model_names
        if not name:
            return served[0]
        if name not in served and len(name) > _LONGEST_NAME:
            raise ArgumentError.of("model", f"a name of at most {_LONGEST_NAME} characters", name)
        if name not in served and not self.config.any_model:
            known, shown = " or ".join(served), name if _PLAIN_NAME.fullmatch(name) else "NAME"
            raise error_from_code(
                "model_not_found",
                f"model must be {known}, got {name[:80]!a}; leave it out, or start the server with --served-model-name "
                f"{shown}, or --any-model",
                "model",
            )
        return name


def to_generate(given: Mapping[str, Any], request_id: str, model: ModelConfig) -> tuple[Generate, tuple[str, ...]]:
    """Make the engine's request of parameters by any of their names. Returns warnings, too: of a size that gave way to
    the model's own, and of a guidance that was meant otherwise.

    Raises `ArgumentError` for parameters that contradict each other.
    """
    fields, warnings = in_own_names(given)
    habit = _by_habit(given)
    if own := own_size(habit, model):
        fields["width"], fields["height"] = own
    if "outpaint" in fields:
        fields["outpaint"] = Outpaint(**fields["outpaint"])
    if "cache" in fields:
        fields["cache"] = CacheChoice.of(fields["cache"])
    replaced = describe_own_size(habit, model)
    return Generate(request_id=request_id, **fields), (*warnings, *([replaced] if replaced else []))


def check_idempotency_key(key: str | None) -> None:
    """Raise `ArgumentError` for an Idempotency-Key that cannot be one."""
    if key is not None and not is_idempotency_key(key):
        allowed = f"1 to {LONGEST_IDEMPOTENCY_KEY} printable ASCII characters"
        raise ArgumentError.of("Idempotency-Key", allowed, key)


def _by_habit(given: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size that may have been sent by habit: one without width and height."""
    size = given.get("size")
    if size in (None, "auto") or given.get("width") is not None or given.get("height") is not None:
        return None
    return read_size("size", size)
