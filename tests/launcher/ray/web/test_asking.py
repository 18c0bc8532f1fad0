"""What is heard of many replicas when some of them hang, or die."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("ray")

from launcher.ray.fleet import Fleet
from launcher.ray.link import RayLink
from launcher.ray.web.asking import answers_within
from launcher.ray.wire import encode_named, encode_replies
from tests.launcher.messages.status_stand_in import STATUS
from tests.launcher.ray.replaying.fake_engines import USUAL

pytestmark = pytest.mark.cluster  # since only there is Ray sure to be

PATIENCE_S = 60.0


class Answer:
    """Of one replica, as Serve has it: bytes, an error, or none, ever."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def get_async(self) -> Any:
        if self._answer is None:
            await asyncio.Event().wait()
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


class Broadcast:
    """A question to all, as Serve has it."""

    def __init__(self, *answers: Any) -> None:
        self._answers = [Answer(answer) for answer in answers]

    async def _fetch_replica_results_async(self) -> list[Answer]:
        return self._answers


class Handle:
    """Serve's handle of two engines, of which one hangs."""

    def __init__(self) -> None:
        self.asked = 0

    def options(self, **_: Any) -> Handle:
        return self

    def broadcast(self, method: str, question: bytes) -> Broadcast:
        self.asked += 1
        return Broadcast(None, encode_named("b", encode_replies([(STATUS, b"")])))


def test_a_replica_that_hangs_silences_none_of_the_others() -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE_S):
            assert await answers_within(Broadcast(b"a", None, RuntimeError("it died"), b"d"), 0.05) == [b"a", b"d"]
        waiting = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())


def test_serve_has_what_is_asked_of_it_here() -> None:
    from ray.serve.handle import DeploymentBroadcastResponse

    assert callable(DeploymentBroadcastResponse._fetch_replica_results_async)


def test_a_cluster_is_ready_while_an_engine_hangs_and_who_asks_at_once_asks_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("launcher.ray.link._ASK_S", 0.05)
    monkeypatch.setattr("launcher.ray.link._FRESH_S", PATIENCE_S)

    async def run() -> None:
        handle = Handle()
        link = RayLink(handle, USUAL, Fleet())
        async with asyncio.timeout(PATIENCE_S):
            found = await asyncio.gather(*(link.status() for _ in range(20)))
            assert all(status.ready for status in [*found, await link.status()])
        assert handle.asked == 1

    asyncio.run(run())
