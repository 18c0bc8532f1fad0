"""Loads: their statistics and mixes, and requests in a closed and an open loop."""

from __future__ import annotations

import asyncio
import statistics
from itertools import pairwise

import pytest

from bench.serve.traffic import Outcome, Run, Shape, Summary, ask, closed_loop, draw_requests, open_loop, parse_mix
from engine.errors import ArgumentError
from tests.bench.serve.stand_ins import MIX, Recorder
from tests.bench.serve.virtual_time import run_in_virtual_time


def test_a_summary_has_the_known_statistics() -> None:
    summary = Summary.of([float(value) for value in range(100, -1, -1)])
    assert summary == Summary(count=101, mean=50.0, median=50.0, p90=90.0, p99=99.0, max=100.0)
    assert Summary.of([2.0]) == Summary(1, 2.0, 2.0, 2.0, 2.0, 2.0)


def test_a_run_counts_only_images_as_throughput_and_latency() -> None:
    timings = {"queue": 0.25, "total": 0.75}
    failed = [Outcome(9.0, failure="refused"), Outcome(9.0, failure="HTTP 500"), Outcome(9.0, failure="refused")]
    load = Run(4.0, [Outcome(1.0, timings), Outcome(3.0), *failed])
    assert load.images_per_s == 0.5
    assert load.failures == {"refused": 2, "HTTP 500": 1}
    stages = load.seconds_by_stage()
    assert {name: (stage.count, stage.mean) for name, stage in stages.items()} == {
        "latency": (2, 2.0),
        "queue": (1, 0.25),
        "total": (1, 0.75),
        "outside": (1, 0.25),
    }
    assert Run(4.0, failed).seconds_by_stage() == {}


def test_a_mix_is_parsed_and_drawn_by_weight() -> None:
    assert list(MIX) == [Shape(64, 64, 3.0, 2), Shape(128, 64, 1.0, 4, 0.0)]
    requests = draw_requests(MIX, 400)
    assert sum(request.width == 64 for request in requests) == pytest.approx(300, abs=40)
    assert requests == draw_requests(MIX, 400)
    prompts = {request.prompt for request in (*requests, *draw_requests(MIX, 400, first=400))}
    assert len(prompts) == 800


@pytest.mark.parametrize(
    "text",
    [
        *("", "64", "64x64", "64x64:1", "64:1:4", "64x64x64:1:4", "64x64:1:4:0:0", "64x64:1:4,", "ax64:1:4"),
        *("0x64:1:4", "64x64:0:4", "64x64:1:0", "64x64:1:2.5", "64x64:1:-1", "64x64:inf:4", "64x64:1:inf"),
        *("64x64:nan:4", "64x64:1:4:-1", "64x64:1:4:nan", "64x64:1:4:inf"),
    ],
)
def test_a_bad_mix_is_named(text: str) -> None:
    with pytest.raises(ArgumentError, match="mix must be WIDTHxHEIGHT:WEIGHT:STEPS") as raised:
        parse_mix(text)
    assert raised.value.parameter == "mix"


def test_a_closed_loop_has_so_many_requests_at_once_and_no_more() -> None:
    target = Recorder(delay_s=0.25)
    load = run_in_virtual_time(closed_loop(target, draw_requests(MIX, 12), 3, deadline_s=10))
    assert load.images == len(target.asked) == 12
    assert target.most_at_once == 3
    assert load.seconds == pytest.approx(4 * 0.25)


def test_an_open_loop_does_not_wait_for_answers() -> None:
    target = Recorder(delay_s=0.5)
    load = run_in_virtual_time(open_loop(target, draw_requests(MIX, 20), rate=1000, deadline_s=10))
    assert load.images == 20
    assert target.most_at_once == 20
    assert all(outcome.latency_s == pytest.approx(0.5) for outcome in load.outcomes)


def test_an_open_loop_arrives_at_its_rate() -> None:
    target = Recorder()
    run_in_virtual_time(open_loop(target, draw_requests(MIX, 1001), rate=200, deadline_s=10))
    gaps = [after - before for before, after in pairwise(target.asked)]
    assert sum(gaps) == pytest.approx(5.0, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(1 / 200, rel=0.1)  # a Poisson process's gaps are exponential


def test_a_latency_counts_from_when_a_request_was_due() -> None:
    async def late() -> Outcome:
        due = asyncio.get_running_loop().time()
        await asyncio.sleep(2.0)
        (request,) = draw_requests(MIX, 1)
        return await ask(Recorder(delay_s=0.5), request, deadline_s=10, due=due)

    assert run_in_virtual_time(late()).latency_s == pytest.approx(2.5)


def test_a_late_answer_and_a_wrong_one_are_failures() -> None:
    late = run_in_virtual_time(closed_loop(Recorder(delay_s=60), draw_requests(MIX, 2), 2, deadline_s=0.05))
    assert late.failures == {"deadline": 2}
    assert late.seconds == pytest.approx(0.05)
    small = run_in_virtual_time(closed_loop(Recorder(size=(16, 16)), draw_requests(MIX, 1), 1, deadline_s=10))
    assert small.failures == {"wrong size": 1}
    assert small.outcomes[0].message == "asked for 128x64, got 16x16"
