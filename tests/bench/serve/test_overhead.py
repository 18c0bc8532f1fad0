"""What dispatching steps and HTTP add."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.serve.overhead import dispatch_overheads, http_overhead
from bench.serve.traffic import RequestFailed, draw_requests, parse_mix
from engine.errors import ArgumentError
from launcher.client.async_client import AsyncClient
from tests.bench.serve.stand_ins import MIX, Recorder
from tests.bench.serve.virtual_time import run_in_virtual_time
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run


def test_dispatch_overhead_is_the_part_of_a_step_without_denoising(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            for rank in fakes.ranks:  # less than passes, or it would not all be counted
                rank.encode_s = rank.denoise_s = rank.decode_s = 1e-6
            (overhead,) = await dispatch_overheads(client, draw_requests(parse_mix("64x64:1:10"), 1), DEADLINE_S)
            assert overhead.steps == 10
            assert overhead.denoise_s == pytest.approx(1e-6)
            assert overhead.tick_s > 0
            assert overhead.share == pytest.approx((overhead.tick_s - 1e-6) / overhead.tick_s)
            with pytest.raises(ArgumentError, match="steps must be at least 3"):
                await dispatch_overheads(client, draw_requests(parse_mix("64x64:1:2"), 1), DEADLINE_S)
            fakes.ranks[0].hold = True
            with pytest.raises(RequestFailed, match="no answer within"):
                await dispatch_overheads(client, draw_requests(parse_mix("64x64:1:3"), 1), 0.1)

    run(test())


def test_http_overhead_is_the_median_of_the_differences() -> None:
    slow, fast = Recorder(delay_s=0.5), Recorder(delay_s=0.125)
    (request,) = draw_requests(MIX, 1)
    overhead = run_in_virtual_time(http_overhead(slow, fast, request, pairs=3, deadline_s=10))
    assert (overhead.pairs, len(slow.asked), len(fast.asked)) == (3, 4, 4)
    assert (overhead.http_s, overhead.rpc_s) == pytest.approx((0.5, 0.125))
    assert overhead.difference_s == pytest.approx(0.375)
    assert [slow.asked[pair] < fast.asked[pair] for pair in range(4)] == [False, True, False, True]
    with pytest.raises(RequestFailed, match="16x16"):
        run_in_virtual_time(http_overhead(Recorder(size=(16, 16)), fast, request, pairs=1, deadline_s=10))
