"""Where the time of a request went, for people: a table, or a trace for Perfetto."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from statistics import median

from engine.config.chat_template import PREFIX_TOKENS, SUFFIX_TOKENS
from launcher.client import trace
from launcher.client.trace import TimedRequest
from launcher.explanation import Explanation, Stage, add_up, timeline

# The parts in the order of a request's life, as a table calls them. `transfer` is the client's to know.
_ROWS = {
    "read_picture": "picture read",
    "filter_prompt": "filters, of the prompt",
    "check": "checked, tokenised",
    "queue": "queue",
    "reach": "measuring for the floors",
    "encode_picture": "picture encoding",
    "encode_text": "text encoding",
    "denoise_queue": "behind others' work",
    "denoise": "denoising",
    "decode_queue": "waiting for the decoder",
    "decode": "decoding (VAE)",
    "filter_image": "filters, of images",
    "file": "image file",
    "lost": "lost with dead ranks",
    "unattributed": "unattributed",
    "transfer": "transfer",
}
_BY_IMAGE = ("decode", "filter_image", "file")
_SHOWN_S = 5e-5  # of a wait, before it has a row
_BESIDE = 1.02  # how much longer a part took than it counts for, before that is said


class ResultExplanation(TimedRequest):
    """Where the time of a request went: `print` it as a table, or `save` it as a trace for ui.perfetto.dev."""

    @classmethod
    def of(
        cls, request_id: str, told: Explanation, *, sent: float, accepted: float | None, ended: float
    ) -> ResultExplanation:
        """Put it beside the client's own times: when the request was sent, first answered, and its last file there."""
        client_s = ended - sent
        if accepted is None or client_s < told.total_s:
            return cls(request_id, told)
        checked_s = max(stage.end_s for stage in told.stages if stage.name == "check")
        offset_s = (accepted - sent - checked_s) / 2
        return cls(request_id, told, client_s, min(max(0.0, offset_s), client_s - told.total_s))

    @property
    def total_s(self) -> float:
        """Seconds from sending the request to having its last file; the server's own where the client's say nothing."""
        return self.told.total_s if self.client_s is None else self.client_s

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part, `transfer` to the server and back among them, which add up to `total_s`."""
        return {**self.told.parts, "transfer": self.total_s - self.told.total_s}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file of Chrome's trace events, which ui.perfetto.dev opens. Raises `Krea2Error` if it cannot."""
        trace.save(path, [self])

    def __str__(self) -> str:
        told, parts = self.told, self.parts
        rows = [("", "seconds", "of all", "floor", "×", "")]
        for part, name in _ROWS.items():
            took, floor, what = self._describe(part)
            if parts[part] < _SHOWN_S and (not what or part == "reach") and part != "unattributed":
                continue
            share = f"{parts[part] / self.total_s:.1%}" if self.total_s else ""
            numbers = ("", "") if not floor else (f"{floor:.4f}", f"{took / floor:.1f}")
            first, *more = what or [""]
            rows.append((name, f"{parts[part]:.4f}", share, *numbers, first))
            rows += [("", "", "", "", "", line) for line in more]
        rows.append(("total", f"{self.total_s:.4f}", "", "", "", ""))
        table = _aligned(rows)
        rule = "─" * max(map(len, table))
        lines = [*self._head(), *table[:1], rule, *table[1:-1], rule, *table[-1:], f"floors: {told.floor_source}"]
        return "\n".join([*lines, *(f"note: {note}" for note in told.notes)])

    def _head(self) -> Iterable[str]:
        told = self.told
        images = "1 image" if told.num_images == 1 else f"{told.num_images} images"
        ranks = "1 rank" if told.ranks == 1 else f"{told.ranks} ranks ({told.mode})"
        where = f" on {told.device}" if told.device else ""
        yield f"{self.request_id}: {images} of {told.width} × {told.height} in {self.total_s:.3f} s by {ranks}{where}"
        for name, tokens in zip(("prompt", "negative prompt"), told.prompt_tokens, strict=False):
            own = tokens - PREFIX_TOKENS - SUFFIX_TOKENS
            yield (
                f"{name}: {_tokens(own)}, {tokens} with the template, of which the first {PREFIX_TOKENS} are dropped "
                "once encoded"
            )
        names = ("conditional", "unconditional")
        segments = " and ".join(
            f"{length} ({name}: {length - told.image_tokens} text + {told.image_tokens} image)"
            for name, length in zip(names, told.segments, strict=False)
        )
        each = "" if told.num_images == 1 else " for each image"
        yield f"tokens of a step{each}: {segments}"
        yield f"steps: {told.steps}{each}, in {len(_occurrences(self._stages('denoise')))} packed steps of the ranks"

    def _stages(self, name: str) -> list[Stage]:
        return [stage for stage in self.told.stages if stage.name == name]

    def _describe(self, part: str) -> tuple[float, float | None, list[str]]:
        """Say how long a part took by itself, the least that it could have, and on which rank it did what."""
        stages = self._stages(part)
        if part == "transfer":
            return 0.0, None, ["to the server and back"] if self.client_s is not None else []
        occurrences = _occurrences(stages)
        took = add_up(timeline(stages, self.told.total_s))[part]
        floors = [[stage.floor_s for stage in of_ranks if stage.floor_s is not None] for of_ranks in occurrences]
        what = [line for line in _what(part, stages, occurrences) if line]
        if part in _BY_IMAGE and took > _BESIDE * self.told.parts[part] + 1e-4:
            what.append(f"{took:.4f} s in all, some of it beside other stages")
        return took, sum(map(max, floors)) if floors and all(floors) else None, what


def _what(part: str, stages: Sequence[Stage], occurrences: Sequence[Sequence[Stage]]) -> Iterable[str]:
    if not stages:
        return
    parts: list[str] = []
    ranks = sorted({stage.rank for stage in stages if stage.rank is not None})
    attempts = sorted({stage.attempt for stage in stages})
    if part == "denoise":
        parts.append(f"{len(occurrences)} steps")
    elif ranks:
        parts.append(f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}")
    elif part in ("read_picture", "filter_prompt", "check", "filter_image", "file"):
        parts.append("front-end")
    if part == "encode_text":
        tokens = sum(of_ranks[0].tokens for of_ranks in occurrences)
        parts.append(_tokens(tokens) if tokens else "nothing was encoded")
    if part in _BY_IMAGE and len(stages) > 1:
        parts.append(f"{len(stages)} images")
    shared = [of_ranks[0].others for of_ranks in occurrences if of_ranks[0].others]
    if shared:
        others = f"{'up to ' * (len(set(shared)) > 1)}{max(shared)} other image{'s' * (max(shared) > 1)}"
        parts.append(f"{f'{len(shared)} ' if len(occurrences) > 1 else ''}shared with {others}")
    for how in dict.fromkeys(of_ranks[0].how for of_ranks in occurrences if of_ranks[0].how):
        count = sum(of_ranks[0].how == how for of_ranks in occurrences)
        words = {
            "graph": f"{count} as CUDA graphs",
            "one by one": f"{count} image by image, for want of memory",
            "no blocks": f"{count} without running a block",
            "some blocks": f"{count} running a part of the blocks",
        }
        parts.append(words.get(how, how))
    if attempts[-1] > 1:
        parts.append(f"attempt{'s' * (len(attempts) > 1)} {', '.join(map(str, attempts))}")
    yield ", ".join(parts)
    for rank in ranks if part == "denoise" else ():
        own = [1e3 * (stage.end_s - stage.begin_s) for stage in stages if stage.rank == rank]
        yield f"rank {rank}: min {min(own):.2f}, median {median(own):.2f}, max {max(own):.2f} ms a step"


def _occurrences(stages: Iterable[Stage]) -> list[list[Stage]]:
    """The stages, those together that are the same on several ranks."""
    found: dict[object, list[Stage]] = {}
    for stage in stages:
        found.setdefault((stage.attempt, stage.images, stage.steps), []).append(stage)
    return list(found.values())


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns under each other: names and what there is to say to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
