"""A request whose engine turns out to be busy for longer than another: it goes there, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import msgspec
import pytest

from launcher.messages.client_messages import Accepted, Image
from tests.launcher.ray.replaying.fake_engines import Act, Drawn, FakeCluster, Replies, well
from tests.launcher.ray.replaying.following import REQUEST, Following, moves
from tests.launcher.ray.replaying.instant_time import run_instantly


def busy_for(seconds: float, *, begins: bool = False, position: int = 1) -> Act:
    """Say when it will be done, and `begins` at once, or else only draw after all that time."""

    async def act(drawn: Drawn) -> AsyncGenerator[Replies, None]:
        accepted = drawn.accepted(estimated_s=seconds, position=position)
        yield [accepted, drawn.step(1)] if begins else [accepted]
        await asyncio.sleep(seconds)
        for reply in drawn.whole()[1:]:
            yield [reply]

    return act


async def with_known_speed(cluster: FakeCluster) -> None:
    """Have requests made that took a second, so that the ingress knows what one takes, and forget them."""
    engines, cluster.engines = cluster.engines, dict.fromkeys(cluster.engines, busy_for(1.0))
    for number in range(4):
        await Following(cluster, msgspec.structs.replace(REQUEST, request_id=f"before {number}")).task
    cluster.engines = engines
    cluster.drawn.clear()
    for name in engines:
        cluster.fleet.stats(name, 0.0, 0, 0)


@pytest.mark.parametrize(
    ("first", "key", "goes_to"),
    [
        (busy_for(9.0), None, ["one", "two"]),
        (busy_for(2.0), None, ["one"]),  # more by less than it takes
        (busy_for(9.0, begins=True), None, ["one"]),
        (busy_for(9.0, position=0), None, ["one"]),  # it is the request itself that takes so long
        (busy_for(9.0), "a key", ["one"]),
    ],
    ids=["longer", "little longer", "begun", "first", "key"],
)
def test_a_request_leaves_once_for_another_engine_where_it_would_wait_for_longer(
    first: Act, key: str | None, goes_to: list[str]
) -> None:
    async def test() -> None:
        cluster = FakeCluster(one=first)
        await with_known_speed(cluster)
        cluster.add(two=busy_for(20.0), three=well)
        cluster.fleet.stats("two", 0.1, 0, 1)  # so it said, long ago
        cluster.fleet.stats("three", 9.0, 0, 1)
        request = msgspec.structs.replace(REQUEST, idempotency_key=key)
        if key is not None:
            cluster.engines["two"] = cluster.engines["three"] = first
        following = Following(cluster, request)
        await following.task
        assert [drawn.engine for drawn in cluster.drawn] == (goes_to if key is None else [cluster.drawn[0].engine])
        assert moves(cluster) == len(cluster.drawn) - 1
        assert [isinstance(reply, Accepted) for reply in following.told].count(True) == len(cluster.drawn)
        assert isinstance(following.told[-1], Image)
        assert all(drawn.closed.is_set() for drawn in cluster.drawn)

    run_instantly(test())


def test_a_request_with_a_picture_stays_since_nobody_knows_what_it_takes() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=busy_for(9.0))
        await with_known_speed(cluster)
        cluster.add(two=well)
        cluster.fleet.stats("two", 0.1, 0, 1)
        told = [reply async for reply, _ in cluster.replay.replies(REQUEST, {"image": b"a picture"})]
        assert isinstance(told[-1], Image)
        assert [drawn.engine for drawn in cluster.drawn] == ["one"]

    run_instantly(test())


def test_nothing_moves_while_nobody_knows_what_a_request_takes() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=busy_for(9.0), two=well)
        cluster.fleet.stats("two", 0.1, 0, 1)
        await Following(cluster).task
        assert moves(cluster) == 0

    run_instantly(test())
