"""What the front-end and a filter's process say to each other, by `launcher/socket_frames.py`.

The process begins with `Up`, or `NotUp` and its end. Then the front-end sends a `Work` at a time, followed by the rgb
of each of its pictures; the answer is `Scored`, `Marked`, followed by the rgb of each picture, or `Failed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from launcher.filters.protocol import Prompt

Method = Literal["check_prompts", "check_images", "mark_images"]
METHODS: tuple[Method, ...] = ("check_prompts", "check_images", "mark_images")
MOST_BYTES = 2**22  # of an answer, without pictures
MOST_CATEGORIES = 1024  # of a prompt or picture
# Why a check has failed: what came is no answer, no memory, anything else that a filter raised, or that whom it asks
# is not there.
Reason = Literal["garbage", "memory", "error", "unavailable"]


class PictureHead(msgspec.Struct, frozen=True):
    """A `Picture` whose rgb follows."""

    width: int
    height: int
    kind: str
    prompt: str


class Work(msgspec.Struct, frozen=True):
    """A method to be called, with prompts or pictures. patience_s: how long it may take."""

    method: Method
    patience_s: float
    prompts: tuple[Prompt, ...] = ()
    pictures: tuple[PictureHead, ...] = ()


class Up(msgspec.Struct, frozen=True, tag=True):
    """The filter is there. thresholds: its own, None where it has none."""

    methods: tuple[Method, ...]
    thresholds: dict[str, float] | None


class NotUp(msgspec.Struct, frozen=True, tag=True):
    """The filter could not be made."""

    message: str


class Scored(msgspec.Struct, frozen=True, tag=True):
    """The scores of each prompt or picture."""

    scores: tuple[dict[str, float], ...]


class Marked(msgspec.Struct, frozen=True, tag=True):
    """The rgb of each picture follows, of the size that it had."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The filter raised something, or returned what it may not. message: for the log alone."""

    reason: Reason
    message: str


def check_scores(scores: object) -> dict[str, float]:
    """Return scores as numbers. Raises `ValueError` for whatever is not scores."""
    try:
        if not isinstance(scores, Mapping):
            raise TypeError
        read = {category: float(score) for category, score in scores.items()}
    except (TypeError, ValueError):
        raise ValueError(f"scores must be a number for each category, got a {type(scores).__name__}") from None
    if len(read) > MOST_CATEGORIES:
        raise ValueError(f"scores must be of at most {MOST_CATEGORIES} categories, got {len(read)}")
    for category, score in read.items():
        if not isinstance(category, str) or not 0 < len(category) <= 200:
            raise ValueError(f"a category must be a text of 1 to 200 characters, got a {type(category).__name__}")
        if not 0 <= score <= 1:  # which NaN is not, either
            raise ValueError(f"a score must be from 0 to 1, got {score:g} for {category!r}")
    return read


decode_work = msgspec.msgpack.Decoder(Work).decode
decode_start = msgspec.msgpack.Decoder(Up | NotUp).decode
decode_answer = msgspec.msgpack.Decoder(Scored | Marked | Failed).decode
