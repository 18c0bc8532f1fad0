"""What a request holds while it is made: its pictures, and what a slow client has not read."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from engine.errors import QueueFullError, ServerError
from launcher.messages.client_messages import Accepted, Generate, Image, Preview, Progress
from launcher.ray.replaying import held as held_module
from tests.launcher.ray.replaying.fake_engines import FakeCluster, dies_after, file_of, waits_after, well
from tests.launcher.ray.replaying.instant_time import instant_now, run_instantly

REQUEST = Generate(request_id="request", prompt="a fox", seed=7, num_images=2)


def test_pictures_go_to_each_engine_and_are_let_go_with_the_last_image_while_its_client_has_read_nothing() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=dies_after(3), two=well)
        cluster.fleet.stats("two", 9.0, 1, 1)
        picture = bytes(range(100))
        references = sys.getrefcount(picture)
        files = {"image": picture, "mask": b"a mask"}
        replies = cluster.replay.replies(REQUEST, files)
        await anext(replies)
        await asyncio.sleep(5.0)
        assert [drawn.files for drawn in cluster.drawn] == [[picture, b"a mask"]] * 2
        assert [drawn.request.pictures for drawn in cluster.drawn] == [("image", "mask")] * 2
        assert cluster.replay._holding.size == 0
        files.clear()
        for drawn in cluster.drawn:
            drawn.files.clear()
        assert sys.getrefcount(picture) == references
        assert sum([isinstance(reply, Image) async for reply, _ in replies]) == 2

    run_instantly(test())


def test_all_requests_fail_when_the_server_is_stopped_wherever_they_are() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=waits_after(2))
        begun = cluster.replay.replies(REQUEST, {"image": b"a picture"})
        assert [type((await anext(begun))[0]) for _ in range(2)] == [Accepted, Progress]
        drawn = cluster.drawn[0]
        cluster.leave("one")
        routed = asyncio.ensure_future(anext(cluster.replay.replies(REQUEST)))
        while not cluster.unrouted:
            await asyncio.sleep(0.01)
        new = asyncio.ensure_future(anext(cluster.replay.replies(REQUEST)))
        while len(cluster.replay._driving) < 3:
            await asyncio.sleep(0)
        cluster.replay.end()
        for waiting in (asyncio.ensure_future(anext(begun)), routed, new):
            with pytest.raises(ServerError, match=r"^the server was stopped$"):
                await waiting
        assert drawn.closed.is_set()
        assert (cluster.replay._holding.size, cluster.unrouted) == (0, 0)

    run_instantly(test())


def test_so_many_bytes_of_pictures_are_held_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(held_module, "_MOST_BYTES", 100)
        cluster = FakeCluster(one=waits_after(2))
        held = cluster.replay.replies(REQUEST, {"image": bytes(60)})
        await anext(held)
        other = Generate(request_id="other", prompt="a fox")
        with pytest.raises(QueueFullError) as raised:
            await anext(cluster.replay.replies(other, {"image": bytes(60)}))
        assert raised.value.parameter == "image"
        assert raised.value.retry_after_s is not None
        await anext(cluster.replay.replies(other))
        await held.aclose()
        assert cluster.drawn[0].closed.is_set()
        await anext(cluster.replay.replies(other, {"image": bytes(60)}))

    run_instantly(test())


def test_a_slow_client_keeps_nobody_waiting_and_gets_the_newest_of_each_kind() -> None:
    async def test() -> None:
        async def busy(drawn: Any) -> Any:
            yield [drawn.accepted()]
            for step in range(1, 1001):
                yield [drawn.step(step), drawn.preview(step % 2, step)]
            yield [drawn.image(0)]
            async for replies in dies_after(0)(drawn):
                yield replies

        cluster = FakeCluster(one=busy, two=well)
        cluster.fleet.stats("two", 9.0, 1, 1)
        replies = cluster.replay.replies(REQUEST)
        first, _ = await anext(replies)
        assert isinstance(first, Accepted)
        before = instant_now()
        await asyncio.sleep(60.0)
        assert all(drawn.closed.is_set() for drawn in cluster.drawn)
        later = [told async for told in replies]
        assert instant_now() - before < 61.0
        assert len(later) <= 6
        assert [(type(reply), reply.attempt) for reply, _ in later if isinstance(reply, (Accepted, Progress))] == [
            (Accepted, 2),
            (Progress, 2),
        ]
        assert [file for reply, file in later if isinstance(reply, Image)] == [file_of(7), file_of(8)]
        assert not any(isinstance(reply, Preview) for reply, _ in later)

    run_instantly(test())


def test_a_slow_client_gets_no_preview_of_an_image_that_is_there() -> None:
    async def test() -> None:
        async def draws(drawn: Any) -> Any:
            yield [drawn.accepted(), drawn.preview(0, 1), drawn.preview(1, 1), drawn.image(0)]
            await asyncio.sleep(20.0)
            yield [drawn.image(1)]

        replies = FakeCluster(one=draws).replay.replies(REQUEST)
        await anext(replies)
        await asyncio.sleep(10.0)
        told = [reply async for reply, _ in replies]
        assert [(type(reply), getattr(reply, "index", None)) for reply in told] == [
            (Preview, 1),
            (Image, 0),
            (Image, 1),
        ]

    run_instantly(test())


def test_who_has_no_use_for_progress_gets_previews_all_the_same() -> None:
    async def test() -> None:
        async def draws(drawn: Any) -> Any:
            yield [drawn.accepted(), drawn.step(1), drawn.preview(0, 1), drawn.step(2)]
            await asyncio.sleep(1.0)
            yield [drawn.image(0), drawn.image(1)]

        replies = FakeCluster(one=draws).replay.replies(REQUEST, progress=False)
        assert [type(reply) async for reply, _ in replies] == [Accepted, Preview, Image, Image]

    run_instantly(test())


def test_requests_are_made_beside_each_other_whatever_their_clients_read() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=well)
        slow = [cluster.replay.replies(Generate(request_id=f"slow {number}", prompt="a fox")) for number in range(50)]
        for replies in slow:
            await anext(replies)
        before = instant_now()
        quick = [reply async for reply, _ in cluster.replay.replies(REQUEST)]
        assert isinstance(quick[-1], Image)
        assert instant_now() - before < 1.0
        for replies in slow:
            await replies.aclose()

    run_instantly(test())
