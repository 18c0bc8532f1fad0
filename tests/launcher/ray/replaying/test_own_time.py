"""The time that a request has: less is left for every attempt, and its end comes also while no engine has it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.errors import QueueFullError, RequestTimeoutError
from launcher.awake import TICK_S
from launcher.messages.client_messages import Generate
from launcher.ray.replaying.own_time import OwnTime
from tests.launcher.ray.replaying.fake_engines import Act, FakeCluster, dies_after, hangs_after, refuses, well
from tests.launcher.ray.replaying.instant_time import instant_now, run_instantly

TIMEOUT_S = 20.0


def make(**fields: Any) -> Generate:
    """A request with its own time."""
    return Generate(**{"request_id": "request", "prompt": "a fox", "seed": 7, "timeout_s": TIMEOUT_S, **fields})


async def follow(cluster: FakeCluster, request: Generate) -> None:
    async for _ in cluster.replay.replies(request):
        pass


def test_an_attempt_has_what_is_left() -> None:
    async def test() -> None:
        async def slow(drawn: Any) -> Any:
            yield [drawn.accepted(), drawn.step(1)]
            await asyncio.sleep(8.0)
            async for replies in dies_after(0)(drawn):
                yield replies

        cluster = FakeCluster(one=slow, two=well)
        cluster.fleet.stats("two", 9.0, 1, 1)
        await follow(cluster, make())
        assert [drawn.request.timeout_s for drawn in cluster.drawn] == [TIMEOUT_S, pytest.approx(12.0, abs=0.1)]
        await follow(cluster, make(request_id="keyed", idempotency_key="key"))
        assert {drawn.request.timeout_s for drawn in cluster.drawn[2:]} == {TIMEOUT_S}, "it is the same request"

    run_instantly(test())


@pytest.mark.parametrize("key", [None, "key"])
def test_it_is_over_after_all_attempts_together_and_by_what_was_asked_for(key: str | None) -> None:
    async def test() -> None:
        async def slow(drawn: Any) -> Any:
            yield [drawn.accepted(), drawn.step(1)]
            await asyncio.sleep(8.0)
            if drawn.engine == "one":
                cluster.leave("one")
                async for replies in dies_after(0)(drawn):
                    yield replies
            await asyncio.sleep(drawn.request.timeout_s - 8.0)
            yield [drawn.failed("timeout")]

        cluster = FakeCluster(one=slow, two=slow)
        cluster.fleet.stats("two", 9.0, 1, 1)
        with pytest.raises(RequestTimeoutError, match=r"not done within its timeout_s of 20$"):
            await follow(cluster, make(idempotency_key=key))
        assert TIMEOUT_S <= instant_now() <= TIMEOUT_S + 1.5
        assert all(drawn.closed.is_set() for drawn in cluster.drawn)

    run_instantly(test())


@pytest.mark.parametrize("says", [None, hangs_after(0), hangs_after(1), hangs_after(3), dies_after(1), dies_after(3)])
def test_it_is_over_wherever_the_request_is(says: Act | None) -> None:
    async def test() -> None:
        async def once(drawn: Any) -> Any:
            assert says is not None
            async for replies in says(drawn):
                cluster.leave("one")
                yield replies

        cluster = FakeCluster(**({} if says is None else {"one": once}))
        with pytest.raises(RequestTimeoutError, match=r"not done within its timeout_s of 20$"):
            await follow(cluster, make())
        assert TIMEOUT_S <= instant_now() <= TIMEOUT_S + 1.5
        assert cluster.unrouted == 0

    run_instantly(test())


def test_what_is_left_of_its_time_is_too_short_only_since_the_time_of_the_request_is_over() -> None:
    async def test() -> None:
        async def dies_late(drawn: Any) -> Any:
            yield [drawn.accepted(), drawn.step(1)]
            await asyncio.sleep(15.0)
            async for replies in dies_after(0)(drawn):
                yield replies

        cluster = FakeCluster(one=dies_late, two=refuses("queue_full", parameter="timeout_s", retry_after_s=3.0))
        cluster.fleet.stats("two", 9.0, 1, 1)
        with pytest.raises(RequestTimeoutError, match=r"not done within its timeout_s of 20$"):
            await follow(cluster, make())
        assert [drawn.engine for drawn in cluster.drawn] == ["one", "two"]

    run_instantly(test())


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 1e9, float("nan")])
def test_an_engine_is_to_refuse_what_is_no_time(timeout_s: float) -> None:
    async def test() -> None:
        cluster = FakeCluster(one=well)
        await follow(cluster, make(timeout_s=timeout_s))
        sent = cluster.drawn[0].request.timeout_s
        assert repr(sent) == repr(timeout_s)

    run_instantly(test())


def test_a_time_that_is_too_short_for_the_request_itself_is_no_full_queue() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=refuses("queue_full", parameter="timeout_s", retry_after_s=3.0), two=well)
        with pytest.raises(QueueFullError) as raised:
            await follow(cluster, make())
        assert raised.value.parameter == "timeout_s"
        assert len(cluster.drawn) == 1

    run_instantly(test())


def test_it_stands_still_while_the_process_does() -> None:
    now = 0.0
    time = OwnTime(make(), lambda: now)
    for _ in range(40):
        now += TICK_S
        time.check()
    now += 3600.0
    time.check()
    assert time.for_attempt() == pytest.approx(TIMEOUT_S - 40 * TICK_S)
    for _ in range(40):
        now += TICK_S
        time.clock()
    with pytest.raises(RequestTimeoutError):
        time.check()
