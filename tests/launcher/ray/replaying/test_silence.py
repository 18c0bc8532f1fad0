"""Engines that hang: they do not die, and say nothing more."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import RequestKilledRanksError, ServerError
from launcher.messages.client_messages import Generate, Image, Reply
from launcher.ray.replaying.history import LostError
from launcher.ray.replaying.silence import SILENT_S, Silence
from tests.launcher.ray.replaying.fake_engines import FakeCluster, hangs_after, waits_after, well
from tests.launcher.ray.replaying.instant_time import instant_now, run_instantly

LONGEST_S = SILENT_S + 8.0


async def follow(cluster: FakeCluster, name: str = "asked") -> list[Reply]:
    replies = cluster.replay.replies(Generate(request_id=name, prompt="a fox", num_images=2), progress=False)
    return [reply async for reply, _ in replies]


@pytest.mark.parametrize("said", [0, 1, 3, 9])
def test_what_an_engine_had_that_hangs_is_drawn_elsewhere_and_what_comes_avoids_it(said: int) -> None:
    async def test() -> None:
        cluster = FakeCluster(one=hangs_after(said), two=well)
        cluster.fleet.stats("two", 9.0, 1, 1)
        told = await follow(cluster)
        assert sorted(reply.index for reply in told if isinstance(reply, Image)) == [0, 1]
        assert [drawn.engine for drawn in cluster.drawn] == ["one", "two"]
        assert SILENT_S < instant_now() < LONGEST_S
        assert b'reason="replica_silent"} 1.0' in cluster.replay.counts.render()
        await follow(cluster, "another")
        assert len(cluster.at("one")) == 1

    run_instantly(test())


def test_an_engine_that_draws_for_long_does_not_hang() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=waits_after(3), two=well)
        cluster.fleet.stats("two", 9.0, 1, 1)
        following = asyncio.create_task(follow(cluster))
        await asyncio.sleep(1000.0)
        assert [drawn.engine for drawn in cluster.drawn] == ["one"]
        following.cancel()

    run_instantly(test())


@pytest.mark.parametrize(("said", "error"), [(0, ServerError), (3, RequestKilledRanksError)])
def test_where_all_hang_the_client_is_told(said: int, error: type[Exception]) -> None:
    async def test() -> None:
        with pytest.raises(error):
            await follow(FakeCluster(one=hangs_after(said), two=hangs_after(said)))
        assert instant_now() < 3 * LONGEST_S + 1.0

    run_instantly(test())


def test_who_was_stopped_itself_blames_nobody_before_it_has_read_what_came() -> None:
    now = 0.0
    silence = Silence(lambda: now)
    now = 3600.0
    assert silence.look() > 0
    silence.heard()
    assert silence.look() == SILENT_S
    now += SILENT_S
    now += silence.look()
    with pytest.raises(LostError, match="nothing for 30 s"):
        silence.look()
