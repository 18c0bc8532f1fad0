"""A request is made while its engines die, refuse or are stopped: what its client is told."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from engine.errors import FilterUnavailableError, Krea2Error, QueueFullError, RequestKilledRanksError, ServerError
from launcher.messages.client_messages import Accepted, Generate, Image, Progress, Reply
from tests.launcher.ray.replaying.fake_engines import (
    Drawn,
    FakeCluster,
    Replies,
    dies_after,
    file_of,
    refuses,
    well,
)
from tests.launcher.ray.replaying.instant_time import run_instantly


async def told(cluster: FakeCluster, **fields: Any) -> list[tuple[Reply, bytes]]:
    """All that a client is told of a request."""
    request = Generate(**{"request_id": "request", "prompt": "a fox", "seed": 7, **fields})
    return [reply async for reply in cluster.replay.replies(request)]


def test_a_request_that_goes_well_is_told_as_its_engine_tells_it() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=well)
        replies = await told(cluster, num_images=2)
        assert [reply for reply, _ in replies] == [reply for reply, _ in cluster.drawn[0].whole()]
        assert [file for _, file in replies if file] == [file_of(7), file_of(8)]
        assert cluster.fleet.where("request") is None

    run_instantly(test())


@pytest.mark.parametrize("after", range(7))
def test_a_request_goes_elsewhere_when_its_engine_dies_and_no_image_comes_twice(after: int) -> None:
    async def test() -> None:
        cluster = FakeCluster(one=dies_after(after), two=well)
        cluster.fleet.stats("two", 5.0, 1, 1)
        replies = await told(cluster, num_images=2, steps=1)
        assert [drawn.engine for drawn in cluster.drawn] == ["one", "two"]
        assert [drawn.request.request_id for drawn in cluster.drawn] == ["request", "request.r2"]
        assert cluster.drawn[1].avoid == ("one",)
        images = [(reply.index, file) for reply, file in replies if isinstance(reply, Image)]
        assert images == [(0, file_of(7)), (1, file_of(8))]
        attempts = [reply.attempt for reply, _ in replies if isinstance(reply, (Accepted, Progress, Image))]
        assert attempts == sorted(attempts)
        assert max(attempts) == (2 if after > 1 else 1)
        assert {getattr(reply, "request_id", None) for reply, _ in replies} == {"request"}

    run_instantly(test())


def test_an_image_of_ranks_that_were_lost_does_not_put_the_attempt_back() -> None:
    async def test() -> None:
        async def repeats(drawn: Drawn) -> AsyncGenerator[Replies, None]:
            yield [drawn.accepted(attempt=2), drawn.image(0, attempt=1), drawn.step(5, attempt=2)]
            yield [drawn.image(1, attempt=2)]

        replies = await told(FakeCluster(one=repeats), num_images=2)
        assert [getattr(reply, "attempt", None) for reply, _ in replies] == [2, 2, 2, 2]

    run_instantly(test())


def test_a_request_in_flight_at_three_deaths_is_not_sent_again() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=dies_after(3), two=dies_after(3), three=dies_after(3), four=well)
        cluster.fleet.stats("four", 99.0, 1, 1)
        with pytest.raises(RequestKilledRanksError, match="died 3 times, while this request was in flight"):
            await told(cluster)
        assert len(cluster.drawn) == 3

    run_instantly(test())


@pytest.mark.parametrize("code", ["server_unavailable", "launch_failed", "rank_failed"])
def test_three_engines_are_asked_where_each_says_that_it_cannot(code: str) -> None:
    async def test() -> None:
        cluster = FakeCluster(**dict.fromkeys(("one", "two", "three", "four"), refuses(code)))
        with pytest.raises(Krea2Error, match=f"it is {code}") as raised:
            await told(cluster)
        assert raised.value.code == code
        assert len({drawn.engine for drawn in cluster.drawn}) == 3

    run_instantly(test())


def test_two_engines_are_asked_where_they_are_full_and_the_sooner_says_when_to_come_back() -> None:
    async def test() -> None:
        full = [refuses("queue_full", retry_after_s=seconds) for seconds in (9.0, 4.0)]
        cluster = FakeCluster(one=full[0], two=full[1], three=well)
        cluster.fleet.stats("three", 99.0, 1, 1)
        with pytest.raises(QueueFullError) as raised:
            await told(cluster)
        assert raised.value.retry_after_s == 4.0
        assert len(cluster.drawn) == 2

    run_instantly(test())


@pytest.mark.parametrize("after", range(10))
def test_what_an_engine_cannot_check_goes_to_another_and_no_image_comes_twice(after: int) -> None:
    """A filter may fail before an image is drawn, and after."""

    async def test() -> None:
        async def unchecked(drawn: Drawn) -> AsyncGenerator[Replies, None]:
            yield [*drawn.whole()[:after], drawn.failed("filter_unavailable", retry_after_s=2.0)]

        cluster = FakeCluster(one=unchecked, two=well)
        cluster.fleet.stats("two", 5.0, 1, 1)
        replies = await told(cluster, num_images=2, steps=1)
        assert [drawn.engine for drawn in cluster.drawn] == ["one", "two"]
        images = [(reply.index, file) for reply, file in replies if isinstance(reply, Image)]
        assert images == [(0, file_of(7)), (1, file_of(8))]
        attempts = [reply.attempt for reply, _ in replies if isinstance(reply, (Accepted, Progress, Image))]
        assert attempts == sorted(attempts)
        assert max(attempts) == (2 if after > 1 else 1)
        assert b'krea2_ingress_replays_total{reason="filter_unavailable"} 1.0' in cluster.replay.counts.render()

    run_instantly(test())


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_three_engines_cannot_check_ends_with_what_the_last_says(begun: bool) -> None:
    async def test() -> None:
        async def unchecked(drawn: Drawn) -> AsyncGenerator[Replies, None]:
            yield [*(drawn.whole()[:3] if begun else ()), drawn.failed("filter_unavailable", retry_after_s=2.0)]

        cluster = FakeCluster(**dict.fromkeys(("one", "two", "three"), unchecked), four=well)
        cluster.fleet.stats("four", 99.0, 1, 1)
        with pytest.raises(FilterUnavailableError, match="it is filter_unavailable") as raised:
            await told(cluster)
        assert raised.value.retry_after_s == 2.0
        assert len({drawn.engine for drawn in cluster.drawn}) == 3

    run_instantly(test())


@pytest.mark.parametrize(
    "code",
    ["invalid_parameter", "out_of_memory", "bad_lora", "image_not_finite", "timeout", "rate_limited", "internal_error",
     "idempotency_conflict", "request_killed_ranks", "moderation_blocked", "of_a_newer_release"],
)  # fmt: skip
def test_an_error_of_the_request_itself_is_told_at_once(code: str) -> None:
    async def test() -> None:
        cluster = FakeCluster(one=refuses(code, parameter="prompt"), two=well)
        with pytest.raises(Krea2Error) as raised:
            await told(cluster)
        assert (raised.value.code, raised.value.parameter) == (code, "prompt")
        assert len(cluster.drawn) == 1

    run_instantly(test())


def test_an_engine_that_cannot_be_reached_is_not_the_requests_fault() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=dies_after(0), two=dies_after(0), three=dies_after(0))
        with pytest.raises(ServerError, match="was lost"):
            await told(cluster)

    run_instantly(test())
