"""Which replies travel together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import msgspec
import pytest

from launcher.messages.client_messages import Accepted, Image, Progress, Reply
from launcher.ray.engine.gathering import WAIT_S, Gathering
from launcher.ray.replaying.silence import ALIVE_S
from tests.launcher.ray.replaying.instant_time import instant_now, run_instantly

ACCEPTED = Accepted(request_id="a", position=0, estimated_s=1.0, attempt=1)


def progress(step: int, attempt: int = 1) -> Progress:
    return Progress(request_id="a", step=step, steps=9, estimated_s=None, attempt=attempt)


def image() -> Image:
    size = {"width": 64, "height": 64}
    return Image(
        request_id="a", index=0, num_images=1, seed=1, output_format="png", warnings=(), timings={}, attempt=1, **size
    )


class Engine:
    """Replies, each of which is read once it is let."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[Reply, bytes] | Exception | None] = asyncio.Queue()

    def say(self, *replies: Reply) -> None:
        for reply in replies:
            self.queue.put_nowait((reply, b""))

    async def replies(self) -> AsyncGenerator[tuple[Reply, bytes], None]:
        while (said := await self.queue.get()) is not None:
            if isinstance(said, Exception):
                raise said
            yield said


async def kinds(gathering: Gathering) -> list[list[str]]:
    return [[type(reply).__name__ for reply, _ in chunk] async for chunk in gathering.chunks()]


def test_a_short_request_that_nobody_follows_is_one_chunk() -> None:
    async def test() -> None:
        engine = Engine()
        engine.say(ACCEPTED, progress(1), progress(2), image())
        engine.queue.put_nowait(None)
        assert await kinds(Gathering(engine.replies(), progress=False)) == [["Accepted", "Progress", "Image"]]

    asyncio.run(test())


def test_that_a_request_has_begun_is_told_soon_and_its_further_progress_not_at_all() -> None:
    async def test() -> None:
        engine = Engine()
        chunks = Gathering(engine.replies(), progress=False).chunks()
        engine.say(ACCEPTED, progress(1))
        began = asyncio.get_running_loop().time()
        first = await anext(chunks)
        assert [type(reply) for reply, _ in first] == [Accepted, Progress]
        assert asyncio.get_running_loop().time() - began >= 0.9 * WAIT_S
        engine.say(progress(2), progress(3), image())
        assert [type(reply) for reply, _ in await anext(chunks)] == [Image]
        await chunks.aclose()

    asyncio.run(test())


def test_a_request_that_starts_over_is_said_to_have_begun_again() -> None:
    async def test() -> None:
        engine = Engine()
        chunks = Gathering(engine.replies(), progress=False).chunks()
        engine.say(ACCEPTED, progress(1))
        await anext(chunks)
        again = msgspec.structs.replace(ACCEPTED, attempt=2)
        engine.say(again, progress(1, attempt=2), progress(2, attempt=2), image())
        assert [reply for reply, _ in await anext(chunks)] == [again, progress(1, attempt=2), image()]
        await chunks.aclose()

    asyncio.run(test())


def test_who_follows_hears_of_the_queue_at_once_and_of_the_newest_progress() -> None:
    async def test() -> None:
        engine = Engine()
        chunks = Gathering(engine.replies(), progress=True).chunks()
        engine.say(ACCEPTED)
        assert [reply for reply, _ in await anext(chunks)] == [ACCEPTED]
        engine.say(progress(1), progress(2))
        assert [reply for reply, _ in await anext(chunks)] == [progress(2)]
        await chunks.aclose()

    asyncio.run(test())


def test_what_a_request_ends_with_comes_after_what_was_said() -> None:
    async def test() -> None:
        engine = Engine()
        engine.say(ACCEPTED)
        engine.queue.put_nowait(ValueError("it ends"))
        chunks = Gathering(engine.replies(), progress=False).chunks()
        assert [reply for reply, _ in await anext(chunks)] == [ACCEPTED]
        with pytest.raises(ValueError, match="it ends"):
            await anext(chunks)

    asyncio.run(test())


def test_who_waits_long_hears_that_the_engine_is_there() -> None:
    async def test() -> None:
        engine = Engine()
        chunks = Gathering(engine.replies(), progress=False).chunks()
        engine.say(ACCEPTED)
        assert [reply for reply, _ in await anext(chunks)] == [ACCEPTED]
        began = instant_now()
        for count in range(1, 4):
            assert await anext(chunks) == []
            assert instant_now() - began == pytest.approx(count * ALIVE_S, abs=0.01)
        engine.say(image())
        assert [reply for reply, _ in await anext(chunks)] == [image()]
        await chunks.aclose()

    run_instantly(test())
