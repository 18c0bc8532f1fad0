"""Whatever engines do with a request, and whenever: nothing is lost, doubled, reordered or wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from engine.errors import Krea2Error
from launcher.messages.client_messages import Accepted, Generate, Image, Preview, Progress, Reply
from launcher.ray.replay import ReplicaLostError
from launcher.ray.replaying.retelling import work_of
from launcher.ray.replaying.silence import SILENT_S
from tests.launcher.ray.replaying.fake_engines import STEPS, USUAL, Drawn, FakeCluster, Replies, file_of
from tests.launcher.ray.replaying.instant_time import run_instantly

NAMES = ("one", "two", "three", "four")
OWN_FAULTS = (
    "invalid_parameter",
    "out_of_memory",
    "timeout",
    "image_not_finite",
    "request_killed_ranks",
    "moderation_blocked",
)
PASSING = ("server_unavailable", "rank_failed", "launch_failed", "cancelled", "filter_unavailable")
GOES_ON = ("step", "step", "step", "image", "image", "preview", "place")
GOES_WRONG = ("die", "raise", "end", "garbage", "misread", "stranger", "too many", "restart", "again", "leave", "wait")
COURSES = 50  # of each seed
ENDS = ("die", "raise", "end", "garbage", "misread", "stranger", "too many")


@dataclass
class Script:
    """What engines do, as a test draws it: at most `most` things that go wrong, and then all goes well."""

    chance: random.Random
    cluster: FakeCluster
    most: int
    deaths: int = 0  # with the request in flight
    faults: list[str] = field(default_factory=list)  # codes that an engine said
    wrong: int = 0

    def draw(self, choices: tuple[str, ...]) -> str:
        return self.chance.choice(choices)

    async def act(self, drawn: Drawn) -> AsyncGenerator[Replies, None]:
        """Be an engine."""
        count, attempt, step = drawn.request.num_images, 1, 0
        unsent = list(range(count))
        sent: list[int] = []
        accepted = begun = False
        chunk: list[tuple[Reply, bytes]] = []
        assert all(other.closed.is_set() for other in self.cluster.drawn if other is not drawn)
        while unsent:
            does = self._next(accepted)
            if does in ("refuse", "fault") or does in ENDS:
                self.deaths += begun and does != "fault"
            match does:
                case "accept":
                    accepted = True
                    chunk.append(drawn.accepted(attempt, position=1, estimated_s=self.chance.choice((1.0, 9.0))))
                case "refuse" | "fault" | "full":
                    code = "queue_full" if does == "full" else self.draw(PASSING if does == "refuse" else OWN_FAULTS)
                    self.faults.append(code)
                    yield [*chunk, drawn.failed(code, retry_after_s=3.0)]
                    return
                case "step" if step < STEPS * count:
                    begun, step = True, step + 1
                    chunk.append(drawn.step(step, attempt))
                case "preview":
                    begun = True
                    chunk.append(drawn.preview(self.chance.randrange(count), 1, attempt))
                case "image":
                    begun = True
                    index = self.chance.choice(unsent)
                    unsent.remove(index)
                    sent.append(index)
                    chunk.append(drawn.image(index, attempt))
                case "again" if sent:
                    begun = True
                    chunk.append(drawn.image(self.chance.choice(sent), attempt))
                case "place":
                    chunk.append(drawn.accepted(attempt, position=1))
                case "restart" if attempt < 3 and begun:
                    attempt, begun, step = attempt + 1, False, STEPS * len(sent)
                    self.deaths += 1
                    chunk.append(drawn.accepted(attempt))
                case "leave":
                    self.cluster.leave(drawn.engine)
                    self.cluster.add(**{f"{drawn.engine}'": self.act})
                    await asyncio.sleep(self.chance.choice((0.0, 0.1, 5.0)))
                case "wait":
                    wait_s = self.chance.choice((0.1, 5.0, 40.0))
                    self.deaths += begun and wait_s > SILENT_S  # after which it is taken for dead
                    await asyncio.sleep(wait_s)
                case "die":
                    yield chunk
                    raise ReplicaLostError("the actor died")
                case "raise":
                    yield chunk
                    raise ValueError("a mistake")
                case "end":
                    yield chunk
                    return
                case "garbage":
                    yield chunk
                    yield self.chance.randbytes(self.chance.randrange(20))
                    return
                case "misread" | "stranger" | "too many" if drawn.request.request_id:
                    changes: dict[str, dict[str, Any]] = {
                        "misread": {"index": count},
                        "stranger": {"request_id": "stranger"},
                        "too many": {"num_images": count + 1},
                    }
                    image, file = drawn.image(0, attempt)
                    yield [*chunk, (msgspec.structs.replace(image, **changes[does]), file)]
                    await asyncio.Event().wait()
            if self.chance.random() < 0.5:
                yield chunk
                chunk = []
        yield chunk

    def _next(self, accepted: bool) -> str:
        goes_wrong = self.wrong < self.most and self.chance.random() < 0.5
        self.wrong += goes_wrong
        if goes_wrong:
            return self.draw(GOES_WRONG if accepted else ("refuse", "fault", "full", *GOES_WRONG))
        if accepted:
            return self.draw((*GOES_ON, "fault")) if self.wrong < self.most - 3 else self.draw(GOES_ON)
        return "accept"


@dataclass
class Client:
    """What a client of a request was told, and what must be so."""

    request: Generate
    told: list[tuple[Reply, bytes]] = field(default_factory=list)
    error: Krea2Error | None = None

    def check(self, script: Script) -> None:
        for reply, _ in self.told:
            assert isinstance(reply, (Accepted, Progress, Preview, Image))
            assert reply.request_id == self.request.request_id
        replies: list[Any] = [reply for reply, _ in self.told]
        attempts = [reply.attempt for reply in replies]
        assert attempts == sorted(attempts), "an attempt went down"
        for attempt in set(attempts):
            steps = [it.step for it in replies if isinstance(it, Progress) and it.attempt == attempt]
            assert steps == sorted(steps), "progress went back within an attempt"
        images = {reply.index: file for reply, file in self.told if isinstance(reply, Image)}
        assert len(images) == sum(isinstance(reply, Image) for reply in replies), "an image came twice"
        assert all(file == file_of(7 + index) for index, file in images.items())
        assert all(it.seed == 7 + it.index for it in replies if isinstance(it, Image))
        seen: set[int] = set()
        for reply in replies:
            assert not (isinstance(reply, Preview) and reply.index in seen), "a preview came after its image"
            seen |= {reply.index} if isinstance(reply, Image) else set()
        if self.error is None:
            assert set(images) == set(range(self.request.num_images)), "an image was lost"
            assert isinstance(replies[-1], Image)
        else:
            self._check_error(script)

    def _check_error(self, script: Script) -> None:
        assert self.error is not None
        code, accepted = self.error.code, any(isinstance(reply, Accepted) for reply, _ in self.told)
        if code == "request_killed_ranks" and code not in script.faults:
            assert script.deaths >= 3
        elif code == "server_unavailable":
            assert script.wrong >= 3
            assert not accepted
        else:
            assert code in script.faults
            assert code != "queue_full" or script.faults.count(code) >= 2 or script.wrong >= 3


def let_it_be_known_what_a_request_takes(cluster: FakeCluster) -> None:
    """So that it may move to another engine."""
    cluster.fleet.replicas_are(["before"])
    cluster.fleet.sent("before", "before", work_of(Generate(request_id="before", prompt="a fox"), USUAL))
    cluster.fleet.accepted("before", 1.0)
    cluster.fleet.ended("before")


@pytest.mark.parametrize("seed", range(8))
def test_each_image_comes_once_or_an_error_that_is_so(seed: int) -> None:
    async def test(chance: random.Random) -> None:
        cluster = FakeCluster()
        let_it_be_known_what_a_request_takes(cluster)
        script = Script(chance, cluster, chance.randrange(8))
        cluster.add(**dict.fromkeys(NAMES[: chance.randint(1, 4)], script.act))
        count, explain = chance.randint(1, 3), chance.random() < 0.3
        request = Generate(request_id="request", prompt="a fox", seed=7, num_images=count, explain=explain)
        client, progress, slow_s = Client(request), chance.random() < 0.7, chance.choice((0.0, 0.0, 0.3, 20.0))
        files = {"image": b"a picture"} if chance.random() < 0.5 else {}
        try:
            async for told in cluster.replay.replies(request, files, progress=progress):
                client.told.append(told)
                await asyncio.sleep(slow_s)
        except Krea2Error as error:
            client.error = error
        client.check(script)
        await check_nothing_is_left(cluster)
        assert all(drawn.files == [*files.values()] for drawn in cluster.drawn)
        assert progress or not any(isinstance(reply, Progress) for reply, _ in client.told)

    for number in range(COURSES):
        run_instantly(test(random.Random(f"{seed} {number}")))


@pytest.mark.parametrize("seed", range(4))
def test_who_hangs_up_ends_all_that_was_made_for_it(seed: int) -> None:
    async def test(chance: random.Random) -> None:
        cluster = FakeCluster()
        let_it_be_known_what_a_request_takes(cluster)
        script = Script(chance, cluster, chance.randrange(6))
        cluster.add(**dict.fromkeys(NAMES[: chance.randint(0, 3)], script.act))
        request = Generate(request_id="request", prompt="a fox", seed=7, num_images=2)
        files = {"image": b"a picture"} if chance.random() < 0.5 else {}

        async def follow(left: int) -> None:
            async for _ in cluster.replay.replies(request, files):
                left -= 1
                if left <= 0:
                    return

        following = asyncio.create_task(follow(chance.randrange(12)))
        await asyncio.wait((following,), timeout=chance.choice((0.0, 0.1, 1.0, 100.0)))
        following.cancel()
        await asyncio.wait((following,))
        await check_nothing_is_left(cluster)

    for number in range(COURSES):
        run_instantly(test(random.Random(f"{seed} {number}")))


async def check_nothing_is_left(cluster: FakeCluster) -> None:
    """Nobody follows an engine any more, nothing waits for one, and nothing is held."""
    async with asyncio.timeout(3.0):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.1)
    assert cluster.unrouted == 0
    assert all(drawn.closed.is_set() for drawn in cluster.drawn)
    tickets = [drawn.request.request_id for drawn in cluster.drawn]
    assert len(set(tickets)) == len(tickets)
    assert [cluster.fleet.where(ticket) for ticket in tickets] == [None] * len(tickets)
    assert cluster.replay._holding.size == 0
    assert not cluster.fleet._listeners
