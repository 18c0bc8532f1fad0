"""What a content filter is: a class with some of the methods of `Filter`, which imports nothing of this package."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Scores = Mapping[str, float]  # by category, from 0 to 1; empty where nothing was found


@dataclass(frozen=True)
class Prompt:
    """What a request asks for. negative: None where there is none, or where it is not used."""

    text: str
    negative: str | None = None


@dataclass(frozen=True)
class Picture:
    """A picture to be checked or marked.

    rgb: its height · width · 3 bytes, row by row. kind: `upload` of a picture that a client sent, `preview` of an image
    that is not done, or `image`. prompt: what it was drawn from.
    """

    width: int
    height: int
    rgb: bytes
    kind: str
    prompt: str


class Filter(Protocol):
    """Checks prompts, pictures or both, or marks pictures: a class has at least one of the methods, and is used for
    those that it has.

    It lives in a process of its own, in which one method runs at a time. Whatever a method raises, or returns that is
    not what it must, counts as a failure of the check, which is never taken for "nothing found". A process in which
    that happened is replaced, unless it was `Unavailable`.

    thresholds: optional: the score from which a category blocks where the operator has said nothing of it; "*" stands
    for every other category. A category for which there is none does not block. Without this attribute every category
    blocks from 0.5.

    categories: optional: all that it ever scores, so that thresholds for anything else are refused when it starts, and
    so is a filter none of whose categories would have a consequence.

    patience_s: optional: where there is such an attribute, it is set before each call to the seconds that it may take:
    for filters that ask somebody else, to raise `Unavailable` in time.
    """

    thresholds: Mapping[str, float]
    categories: Collection[str]
    patience_s: float

    def check_prompts(self, prompts: Sequence[Prompt]) -> Sequence[Scores]:
        """Return the scores of each prompt, in their order."""

    def check_images(self, pictures: Sequence[Picture]) -> Sequence[Scores]:
        """Return the scores of each picture, in their order."""

    def mark_images(self, pictures: Sequence[Picture]) -> Sequence[bytes]:
        """Return the rgb of each picture with a mark in it, such as a watermark, in the same size. Pictures come here
        after all checks, and as they are going to be sent."""


class Unavailable(Exception):
    """Raised by a filter that has to ask somebody else, who does not answer as they should: its process is kept."""
