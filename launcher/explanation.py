"""What a client is told that asks where the time of its request went.

Times are seconds since the request came to the front-end, by its clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

# What a request does, or waits for; where two are under way at once, the earlier in this list is what its time counts
# for. `unattributed` is what no other is.
WORK = (
    "denoise",
    "encode_text",
    "encode_picture",
    "decode",
    "reach",
    "file",
    "check",
    "read_picture",
    "filter_prompt",
    "filter_image",
)
WAITS = ("queue", "denoise_queue", "decode_queue", "lost")
PARTS = (*WORK, *WAITS, "unattributed")


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stretch of a request's life: one of `WORK` or `WAITS`, on a rank, or in the front-end if that is null.

    images: those of the request that it was for, by index; others: how many images of other requests beside. steps:
    which step of each of these images it was, from 1. tokens: that it worked on, those of others among them. floor_s:
    the least time for as much work on this rank, where that is known. how: what was special, in words.
    """

    name: str
    begin_s: float
    end_s: float
    attempt: int
    rank: int | None = None
    images: tuple[int, ...] = ()
    others: int = 0
    steps: tuple[int, ...] = ()
    tokens: int = 0
    floor_s: float | None = None
    how: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The life of a request.

    total_s: from its coming to its last file. parts: seconds by what it did or waited for, one of `PARTS` each, which
    add up to the total. clock_s: when it came, by the front-end's clock, for explanations of one server to be compared.
    mode: tp, sp and guidance, for people. prompt_tokens: of the whole prompt, and of the negative one if it was used,
    template included. segments: for each of these, text and image tokens of an image in a step. floor_source: how the
    floors were reckoned, or why there are none. notes: what else was special, in sentences.
    """

    total_s: float
    clock_s: float
    parts: dict[str, float]
    mode: str
    device: str
    ranks: int
    num_images: int
    width: int
    height: int
    steps: int
    attempt: int
    prompt_tokens: tuple[int, ...]
    segments: tuple[int, ...]
    image_tokens: int
    floor_source: str
    notes: tuple[str, ...]
    stages: tuple[Stage, ...]


def timeline(stages: Iterable[Stage], total_s: float) -> list[tuple[str, float, float]]:
    """Give each instant of a request's life to the first of `PARTS` that is under way then: (part, begin, end), without
    gaps, from 0 to the total."""
    changes = sorted(
        (min(max(at, 0.0), total_s), change, stage.name)
        for stage in stages
        for at, change in ((stage.begin_s, 1), (stage.end_s, -1))
    )
    spans: list[tuple[str, float, float]] = []
    under_way: Counter[str] = Counter()
    since = 0.0
    for at, change, name in [*changes, (total_s, 0, "")]:
        if at > since:
            part = next((part for part in PARTS if under_way[part] > 0), "unattributed")
            if spans and spans[-1][0] == part:
                spans[-1] = part, spans[-1][1], at
            else:
                spans.append((part, since, at))
            since = at
        under_way[name] += change
    return spans


def add_up(spans: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Add up a timeline by part."""
    parts = dict.fromkeys(PARTS, 0.0)
    for part, begin, end in spans:
        parts[part] += end - begin
    return parts
