"""What holds for every explanation of a request, and for every trace that is made of some."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

from launcher.client.explanation import ResultExplanation
from launcher.client.trace import trace_events
from launcher.explanation import PARTS, Explanation

TRACKS = {"reach": "encode", "encode_picture": "encode", "encode_text": "encode"}


def expect_whole(told: Explanation) -> None:
    """Expect the parts to add up, and stages to lie within the request's life, one after the other on each rank."""
    assert set(told.parts) == set(PARTS)
    assert all(seconds >= 0 for seconds in told.parts.values())
    assert sum(told.parts.values()) == pytest.approx(told.total_s)
    on_tracks = defaultdict(list)
    for stage in told.stages:
        assert -1e-9 <= stage.begin_s <= stage.end_s <= told.total_s + 1e-9, stage
        if stage.rank is not None:
            on_tracks[stage.rank, TRACKS.get(stage.name, stage.name)].append((stage.begin_s, stage.end_s))
    for spans in on_tracks.values():
        for (_, end), (begin, _) in pairwise(sorted(spans)):
            assert end <= begin + 1e-9


def expect_trace(trace: dict[str, Any], *explanations: ResultExplanation) -> None:
    """Expect a trace to be what Perfetto reads: in order, and on each track what overlaps is nested; and what the
    requests' time went into to add up to their totals."""
    assert json.loads(json.dumps(trace)) == json.loads(json.dumps(trace_events(explanations)))
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    named = {(event["pid"], event["tid"]) for event in trace["traceEvents"] if event["name"] == "thread_name"}
    assert [event["ts"] for event in events] == sorted(event["ts"] for event in events)
    assert events[0]["ts"] == 0
    open_spans: dict[tuple[int, int], list[int]] = defaultdict(list)
    for event in events:
        assert event["dur"] >= 0
        track = event["pid"], event["tid"]
        assert track in named
        ends, end = open_spans[track], event["ts"] + event["dur"]
        while ends and ends[-1] <= event["ts"]:
            ends.pop()
        assert not ends or end <= ends[-1], event
        ends.append(end)
    tiles = defaultdict(list)
    for event in events:
        if event["pid"] == 2 and event["tid"] % 100 == 1 and event["dur"]:
            tiles[event["tid"]].append(event)
    assert len(tiles) == len(explanations)
    for each, spans in zip(explanations, (tiles[tid] for tid in sorted(tiles)), strict=True):
        assert all(first["ts"] + first["dur"] == then["ts"] for first, then in pairwise(spans))
        assert abs(sum(span["dur"] for span in spans) - 1e6 * each.told.total_s) <= 1
