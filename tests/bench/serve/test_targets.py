"""Loads over RPC, on an engine whose ranks are fake, and over HTTP, on a stand-in for a peer's server."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from bench.serve.targets import HttpTarget, RpcTarget
from bench.serve.traffic import (
    REFUSED,
    Answer,
    ImageRequest,
    RequestFailed,
    Run,
    closed_loop,
    draw_requests,
    open_loop,
    parse_mix,
)
from launcher.client.async_client import AsyncClient
from launcher.messages.limits import Limits
from launcher.requests.timings import STAGES
from tests.bench.serve.stand_ins import MIX, peer
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, fake_engine, run


def test_over_rpc_the_stages_are_the_engines(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            target = RpcTarget(client)
            closed = await closed_loop(target, draw_requests(MIX, 6), 2, DEADLINE_S)
            opened = await open_loop(target, draw_requests(MIX, 6), 100, DEADLINE_S)
        for load in (closed, opened):
            assert load.images == 6
            stages = load.seconds_by_stage()
            assert list(stages) == ["latency", *STAGES, "total", "outside"]
            assert stages["decode"].median == 0.125
            assert 0 < stages["total"].max < stages["latency"].max

    run(test())


class LetsGo(RpcTarget):
    """Lets a rank that holds its steps go on when `refusals` requests were refused."""

    def __init__(self, client: AsyncClient, rank: FakeRank, refusals: int) -> None:
        super().__init__(client)
        self._rank, self._refusals = rank, refusals

    async def generate(self, request: ImageRequest) -> Answer:
        try:
            return await super().generate(request)
        except RequestFailed as error:
            self._refusals -= error.kind == REFUSED
            if self._refusals == 0:
                self._rank.resume()
            raise


def test_over_rpc_a_full_queue_refuses_and_other_errors_fail(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, limits=Limits(max_queue=2)) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            load = await closed_loop(LetsGo(client, fakes.ranks[0], 2), draw_requests(MIX, 5), 5, DEADLINE_S)
            assert (load.images, load.failures) == (3, {"refused": 2})  # one had begun, two waited
            target = RpcTarget(client)
            bad = await closed_loop(target, draw_requests(parse_mix("16x16:1:4"), 1), 1, DEADLINE_S)
            assert bad.failures == {"invalid_parameter": 1}
            fakes.ranks[0].hold = True
            late = await closed_loop(target, draw_requests(MIX, 3), 3, deadline_s=0.1)
            assert late.failures == {"deadline": 3}

    run(test())


def load_url(url: str, count: int = 6) -> Run:
    async def load() -> Run:
        async with HttpTarget(url, fields="krea", extra={}, api_key="sesame") as target:
            return await closed_loop(target, draw_requests(MIX, count), 3, DEADLINE_S)

    return asyncio.run(load())


def test_over_http_a_request_is_what_openais_client_sends_and_the_fields_that_were_chosen() -> None:
    mix = parse_mix("128x64:1:4:2.5")
    expected = {
        "krea": {"seed": 0, "steps": 4, "guidance": 2.5},
        "diffusers": {"seed": 0, "num_inference_steps": 4, "guidance_scale": 2.5},
        "openai": {},
    }
    for fields, own in expected.items():
        with peer() as server:

            async def load(url: str = server.url, fields: str = fields) -> Run:
                async with HttpTarget(url, fields=fields, extra={"model": "x"}, api_key=None) as target:
                    return await closed_loop(target, draw_requests(mix, 1), 1, DEADLINE_S)

            assert asyncio.run(load()).images == 1
        (body,) = server.bodies
        assert body.pop("prompt")
        assert body == own | {
            "path": "/v1/images/generations",
            "key": None,
            "n": 1,
            "size": "128x64",
            "response_format": "b64_json",
            "model": "x",
        }


def test_over_http_a_server_without_timings_has_a_latency_alone() -> None:
    with peer() as server:
        load = load_url(server.url)
    assert load.images == 6
    assert list(load.seconds_by_stage()) == ["latency"]
    assert {body["key"] for body in server.bodies} == {"Bearer sesame"}
    with peer(timings={"queue": 0.5, "total": 0.75}) as server:
        stages = load_url(server.url).seconds_by_stage()
    assert list(stages) == ["latency", "queue", "total", "outside"]
    assert stages["queue"].mean == 0.5


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, b"later", "refused"),
        (500, b"boom", "HTTP 500"),
        (200, b"no json", "bad answer"),
        (200, b'{"data": []}', "bad answer"),
        (200, b'{"data": [{"b64_json": "AAAA"}]}', "no image"),
    ],
)
def test_over_http_failures_are_counted_by_kind(status: int, body: bytes, kind: str) -> None:
    with peer(fails_every=3, status=status, body=body) as server:
        load = load_url(server.url)
    assert (load.images, load.failures) == (4, {kind: 2})


def test_over_http_a_server_that_is_not_there_is_a_failure() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # so that no other server may have its port
        assert load_url(f"http://127.0.0.1:{nobody.getsockname()[1]}", count=1).failures == {"ConnectError": 1}
