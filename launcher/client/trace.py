"""Writes the lives of requests as Chrome's trace events, which ui.perfetto.dev opens.

A process is the client, the front-end or a rank; a track in it what goes on there one after the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import Krea2Error
from launcher.explanation import Explanation, Stage, timeline

Event = dict[str, Any]
_CLIENT, _FRONTEND, _FIRST_RANK = 1, 2, 10  # processes
_TRACKS = 100  # of a request in each process
_ENCODE = 1, "encode"
_RANK_TRACKS = {
    "reach": _ENCODE,
    "encode_picture": _ENCODE,
    "encode_text": _ENCODE,
    "denoise": (2, "denoise"),
    "decode": (3, "VAE"),
}
_NAMES = {
    "read_picture": "read picture",
    "filter_prompt": "filters: prompt",
    "check": "check and tokenise",
    "reach": "measure for the floors",
    "encode_picture": "encode picture",
    "encode_text": "encode prompts",
    "denoise_queue": "behind others' work",
    "decode_queue": "wait for the decoder",
    "filter_image": "filters: image",
    "file": "write file",
    "lost": "lost with dead ranks",
}


@dataclass(frozen=True)
class TimedRequest:
    """The life of a request, as its front-end tells it, beside its client's own times.

    told: what the front-end says, in seconds since the request came to it. client_s: seconds from sending the request
    to having its last file, and offset_s: what of these passed before it came, taken to be half of what passed until
    the server's first answer but for its own work; None for a request that joined another, which came before.
    """

    request_id: str
    told: Explanation
    client_s: float | None = None
    offset_s: float = 0.0


def save(path: str | os.PathLike[str], explanations: Sequence[TimedRequest]) -> None:
    """Write requests of one server to a file, on one clock. Raises `Krea2Error` if it cannot be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(trace_events(explanations), ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise Krea2Error(f"{os.fspath(path)}: cannot be written: {error.strerror or error}") from None


def trace_events(explanations: Sequence[TimedRequest]) -> dict[str, Any]:
    """Give requests of one server as an object of trace events, in microseconds since the first was sent."""
    zero = min((each.told.clock_s - each.offset_s for each in explanations), default=0.0)
    events: list[Event] = []
    for number, each in enumerate(explanations):
        suffix = f": {each.request_id}" if len(explanations) > 1 else ""
        events += _Tracks(each, zero, number * _TRACKS, suffix).events()
    spans = [event for event in events if event["ph"] == "X"]
    names = {json.dumps(event, sort_keys=True): event for event in events if event["ph"] == "M"}
    return {"traceEvents": [*names.values(), *sorted(spans, key=_order)], "displayTimeUnit": "ms"}


def _order(event: Event) -> tuple[int, int]:
    return event["ts"], -event["dur"]  # what encloses others before them


class _Tracks:
    """Makes the events of one request, on tracks from `first` on. zero: what the clock showed at the trace's 0."""

    def __init__(self, explanation: TimedRequest, zero: float, first: int, suffix: str) -> None:
        self._explanation, self._first, self._suffix = explanation, first, suffix
        self._zero = zero - explanation.told.clock_s  # in seconds of the request's own

    def events(self) -> Iterator[Event]:
        each, told = self._explanation, self._explanation.told
        if each.client_s is not None:
            yield from self._name(_CLIENT, "client", 0, "generate")
            yield self._span(_CLIENT, 0, f"generate {each.request_id}", -each.offset_s, each.client_s - each.offset_s)
        yield from self._name(_FRONTEND, "front-end", 0, "request")
        yield from self._name(_FRONTEND, "front-end", 1, "where the time goes")
        about = {"tokens": told.segments, "steps": told.steps, "mode": told.mode, "attempt": told.attempt}
        yield self._span(_FRONTEND, 0, f"request {each.request_id}", 0.0, told.total_s, about)
        for part, begin_s, end_s in timeline(told.stages, told.total_s):
            yield self._span(_FRONTEND, 1, _NAMES.get(part, part), begin_s, end_s)
        for stage in told.stages:
            yield from self._stage(stage)

    def _stage(self, stage: Stage) -> Iterator[Event]:
        about = {
            "attempt": stage.attempt,
            "images": stage.images,
            "images of others": stage.others,
            "packed tokens": stage.tokens,
            "floor (ms)": None if stage.floor_s is None else round(1e3 * stage.floor_s, 3),
            "how": stage.how,
        }
        about = {key: value for key, value in about.items() if value not in (None, (), "", 0)}
        name = _NAMES.get(stage.name, stage.name)
        if stage.rank is None:
            process, process_name, (track, track_name) = _FRONTEND, "front-end", (0, "request")
            if stage.name in ("decode_queue", "filter_image", "file"):
                track, track_name = 2 + stage.images[0], f"image {stage.images[0]}"
        else:
            process, process_name = _FIRST_RANK + stage.rank, f"rank {stage.rank}"
            track, track_name = _RANK_TRACKS[stage.name]
        if stage.name == "denoise":
            name = "step " + ", ".join(map(str, sorted(set(stage.steps))))
        elif stage.name == "decode":
            name = f"decode image {stage.images[0]}"
        yield from self._name(process, process_name, track, track_name)
        yield self._span(process, track, name, stage.begin_s, stage.end_s, about)

    def _span(
        self, process: int, track: int, name: str, begin_s: float, end_s: float, about: dict[str, Any] | None = None
    ) -> Event:
        begin, end = (round(1e6 * (at - self._zero)) for at in (begin_s, end_s))
        where = {"pid": process, "tid": self._first + track}
        return {"ph": "X", "name": name, "ts": begin, "dur": end - begin, **where, "args": about or {}}

    def _name(self, process: int, process_name: str, track: int, track_name: str) -> Iterator[Event]:
        where = {"ph": "M", "pid": process, "tid": self._first + track}
        yield {"ph": "M", "pid": process, "tid": 0, "name": "process_name", "args": {"name": process_name}}
        yield {"ph": "M", "pid": process, "tid": 0, "name": "process_sort_index", "args": {"sort_index": process}}
        yield {**where, "name": "thread_name", "args": {"name": f"{track_name}{self._suffix}"}}
        yield {**where, "name": "thread_sort_index", "args": {"sort_index": self._first + track}}
