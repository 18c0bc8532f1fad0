"""Engines that are stopped: what has begun there ends there, and everything else goes elsewhere."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from engine.errors import ServerError
from launcher.messages.client_messages import Accepted, Image, Progress
from launcher.ray.replaying.history import LONG_PATIENCE_S, PATIENCE_S
from launcher.ray.replaying.silence import ALIVE_S
from tests.launcher.ray.replaying.fake_engines import (
    Act,
    FakeCluster,
    dies_after,
    hangs_after,
    refuses,
    waits_after,
    well,
)
from tests.launcher.ray.replaying.following import Following, metric, moves
from tests.launcher.ray.replaying.instant_time import instant_now, run_instantly


def test_what_has_not_begun_leaves_an_engine_that_is_stopped_at_once_and_that_is_no_attempt() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=waits_after(1))
        following = Following(cluster)
        await following.hears(1)
        cluster.add(two=well)
        before = instant_now()
        cluster.leave("one")
        await following.task
        assert instant_now() - before < 0.1
        assert cluster.drawn[0].closed.is_set()
        assert [type(reply) for reply in following.told[:3]] == [Accepted, Accepted, Progress]
        assert isinstance(following.told[-1], Image)
        assert {reply.attempt for reply in following.told if isinstance(reply, (Accepted, Progress, Image))} == {1}
        assert metric(cluster, 'krea2_ingress_moves_total{reason="stopped"}') == 1
        assert metric(cluster, "krea2_ingress_replays_total") == 0

    run_instantly(test())


def test_what_has_waited_for_hours_leaves_too() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=waits_after(1))
        following = Following(cluster)
        await following.hears(1)
        await asyncio.sleep(4000.0)
        cluster.add(two=well)
        cluster.fleet.stats("one", 9.0, 1, 0)
        await Following(cluster).task
        assert cluster.fleet.where(cluster.drawn[0].request.request_id) is None  # it forgets what is that old
        cluster.leave("one")
        await following.task
        assert [drawn.engine for drawn in cluster.drawn] == ["one", "two", "two"]

    run_instantly(test())


def test_what_has_begun_ends_where_it_is() -> None:
    async def test() -> None:
        go_on = asyncio.Event()

        async def slow(drawn: Any) -> Any:
            yield [drawn.accepted(), drawn.step(1)]
            while not go_on.is_set():
                await asyncio.sleep(ALIVE_S)
                yield []
            yield [drawn.image(0)]

        cluster = FakeCluster(one=slow, two=well)
        cluster.fleet.stats("two", 9.0, 1, 1)
        following = Following(cluster)
        await following.hears(2)
        cluster.leave("one")
        await asyncio.sleep(60.0)
        go_on.set()
        await following.task
        assert [drawn.engine for drawn in cluster.drawn] == ["one"]

    run_instantly(test())


def test_a_request_waits_where_it_is_while_there_is_no_other_engine() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=waits_after(1))
        following = Following(cluster)
        await following.hears(1)
        cluster.leave("one")
        await asyncio.sleep(2 * LONG_PATIENCE_S)
        assert not cluster.drawn[0].closed.is_set()
        cluster.add(two=well)
        await following.task
        assert [drawn.engine for drawn in cluster.drawn] == ["one", "two"]

    run_instantly(test())


def test_a_request_that_ranks_which_are_lost_had_begun_can_be_moved_again_and_its_deaths_stay() -> None:
    async def test() -> None:
        async def restarts(drawn: Any) -> Any:
            yield [drawn.accepted(), drawn.step(1), drawn.accepted(attempt=2)]
            await asyncio.Event().wait()

        cluster = FakeCluster(one=restarts)
        following = Following(cluster)
        await following.hears(1)
        await asyncio.sleep(1.0)
        cluster.add(two=well)
        cluster.leave("one")
        await following.task
        attempts = [reply.attempt for reply in following.told if isinstance(reply, (Accepted, Progress, Image))]
        assert attempts == sorted(attempts)
        assert attempts[-1] == 2

    run_instantly(test())


def test_an_engine_that_dies_at_once_with_a_request_that_it_has_not_answered_is_not_left_before_that_is_known() -> None:
    async def test() -> None:
        async def dies(drawn: Any) -> Any:
            cluster.leave(drawn.engine)  # as the router hears of a death before its calls do
            await asyncio.sleep(0.5)
            async for replies in dies_after(0)(drawn):
                yield replies

        cluster = FakeCluster(**dict.fromkeys(("one", "two", "three", "four"), dies))
        with pytest.raises(ServerError, match="was lost"):
            await Following(cluster).task
        assert len(cluster.drawn) == 4
        assert moves(cluster) == 0

    run_instantly(test())


def test_engines_may_leave_in_any_thread() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=waits_after(1), two=well)
        cluster.fleet.stats("two", 9.0, 1, 1)
        following = Following(cluster)
        await following.hears(1)
        thread = threading.Thread(target=cluster.fleet.replicas_are, args=(["two"],))
        thread.start()
        thread.join()
        await following.task
        assert [drawn.engine for drawn in cluster.drawn] == ["one", "two"]

    run_instantly(test())


def test_a_new_request_waits_a_while_for_an_engine_and_then_is_told_to_come_back() -> None:
    async def test() -> None:
        cluster = FakeCluster()
        with pytest.raises(ServerError, match="all engines are starting or being stopped") as raised:
            await Following(cluster).task
        assert instant_now() == pytest.approx(PATIENCE_S, abs=1.0)
        assert raised.value.retry_after_s is not None
        assert cluster.unrouted == 0
        following = Following(cluster)
        await asyncio.sleep(PATIENCE_S - 5)
        cluster.add(one=well)
        await following.task

    run_instantly(test())


def test_a_request_whose_engine_is_gone_before_it_said_anything_waits_no_longer_for_another() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=hangs_after(0))
        following = Following(cluster)
        await asyncio.sleep(1.0)
        cluster.leave("one")  # it was dead when the router asked it, which keeps the request
        async with asyncio.timeout(2 * PATIENCE_S):
            with pytest.raises(ServerError, match="all engines are starting or being stopped"):
                await following.task
        assert instant_now() == pytest.approx(1.0 + PATIENCE_S, abs=1.5)

    run_instantly(test())


def test_a_request_that_was_accepted_waits_longer_for_an_engine_in_place_of_one_that_died() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=dies_after(3))
        following = Following(cluster)
        await following.hears(1)
        cluster.leave("one")
        await asyncio.sleep(LONG_PATIENCE_S - 5)
        cluster.add(two=well)
        await following.task
        following = Following(FakeCluster(one=dies_after(3)))
        await following.hears(1)
        following._cluster.leave("one")
        with pytest.raises(ServerError, match="the engine that the request was sent to was lost"):
            await following.task

    run_instantly(test())


def test_a_request_that_was_accepted_waits_for_room_elsewhere() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=dies_after(3), two=refuses("queue_full", retry_after_s=1.0))
        cluster.fleet.stats("two", 9.0, 1, 1)
        following = Following(cluster)
        await following.hears(1)
        cluster.leave("one")
        await asyncio.sleep(60.0)
        assert not following.task.done()
        cluster.engines["two"] = well
        await following.task
        assert isinstance(following.told[-1], Image)

    run_instantly(test())


@pytest.mark.parametrize("says", [refuses("server_unavailable"), dies_after(0)])
def test_an_engine_that_ends_is_asked_again_until_there_is_another(says: Act) -> None:
    """So it is with a single engine, whose actor lives on for a moment when its front-end has died."""

    async def test() -> None:
        cluster = FakeCluster(one=says)
        following = Following(cluster)
        await asyncio.sleep(5.0)
        assert len(cluster.drawn) < 12
        cluster.add(two=well)
        await following.task
        assert isinstance(following.told[-1], Image)

    run_instantly(test())


def test_many_engines_that_have_died_and_are_not_known_to_are_no_reason_to_refuse_a_request() -> None:
    async def test() -> None:
        cluster = FakeCluster(**{f"dead{number}": dies_after(0) for number in range(10)}, alive=well)
        cluster.fleet.stats("alive", 99.0, 1, 1)
        following = Following(cluster)
        await following.task
        assert len(cluster.drawn) == 11
        assert instant_now() < 1.0

    run_instantly(test())


def test_a_request_that_only_waits_where_engines_die_is_not_to_blame() -> None:
    async def test() -> None:
        names = ("one", "two", "three", "four", "five")
        cluster = FakeCluster(**dict.fromkeys(names, dies_after(1)), six=well)
        cluster.fleet.stats("six", 99.0, 1, 1)
        following = Following(cluster)
        await following.task
        assert len(cluster.drawn) == 6
        assert metric(cluster, 'krea2_ingress_replays_total{reason="replica_lost"}') == 5

    run_instantly(test())
