"""The link of an ingress over a handle that is no Serve's: what it asks, and what becomes of what it hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

pytest.importorskip("ray")

from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError

from engine.errors import ConflictError, ServerError
from launcher.client.results import Result
from launcher.messages.client_messages import (
    Accepted,
    Failed,
    Generate,
    Image,
    ListLoras,
    Loras,
    Metrics,
    MetricsReply,
    Status,
)
from launcher.messages.encoding import decode_request
from launcher.ray import link as link_module
from launcher.ray.fleet import Fleet
from launcher.ray.link import RayLink
from launcher.ray.wire import decode_hints, encode_named, encode_replies
from tests.launcher.messages.status_stand_in import STATUS
from tests.launcher.ray.replaying.fake_engines import USUAL

pytestmark = pytest.mark.cluster  # since only there is Ray sure to be

PATIENCE_S = 60.0
REQUEST = Generate(request_id="r", prompt="a fox", seed=7)


class FakeHandle:
    """Serve's handle of engines, `names`, that draw by `draw`: a generator of chunks, given the number of the call."""

    def __init__(self, draw: Callable[[int, str], AsyncGenerator[bytes, None]], *names: str) -> None:
        self._draw, self.names = draw, names
        self.calls: list[tuple[Any, ...]] = []
        self.cancelled = 0
        self.unreachable: Exception | None = None
        self.replies: dict[type, Any] = {
            Status: STATUS,
            ListLoras: Loras(request_id="q", loras=(), merged=(), loadable=False),
        }

    def options(self, **_: Any) -> FakeHandle:
        return self

    @property
    def draw(self) -> FakeHandle:
        return self

    def remote(self, *arguments: Any) -> Any:
        if len(arguments) == 1:
            return self._ask(arguments[0])
        self.calls.append(arguments)
        return FakeResponse(self, self._draw(len(self.calls), decode_hints(arguments[-1]).ticket))

    @property
    def ask(self) -> FakeHandle:
        return self

    def broadcast(self, method: str, question: bytes) -> FakeHandle:
        assert method == "report"
        self.question = question
        return self

    async def _fetch_replica_results_async(self) -> list[FakeAnswer]:
        if self.unreachable is not None:
            raise self.unreachable
        answers: list[Any] = [encode_named(name, await self._ask(self.question)) for name in self.names]
        return [FakeAnswer(answer) for answer in (*answers, ActorDiedError())]

    async def _ask(self, question: bytes) -> bytes:
        asked = decode_request(question)
        if isinstance(asked, Metrics):
            return encode_replies([(MetricsReply(), b"krea2_images 1\n")])
        return encode_replies([(self.replies[type(asked)], b"")])


class FakeAnswer:
    """What one replica answers to a question to all."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def get_async(self) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


class FakeResponse:
    """The stream of one call."""

    def __init__(self, handle: FakeHandle, chunks: AsyncGenerator[bytes, None]) -> None:
        self._handle, self._chunks = handle, chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    def cancel(self) -> None:
        self._handle.cancelled += 1


def _link(draw: Callable[[int, str], AsyncGenerator[bytes, None]], *names: str) -> tuple[RayLink, FakeHandle]:
    fleet, handle = Fleet(), FakeHandle(draw, *names)
    fleet.replicas_are(names)
    return RayLink(handle, USUAL, fleet), handle


def _accepted(ticket: str) -> bytes:
    return encode_replies([(Accepted(request_id=ticket, position=0, estimated_s=None, attempt=1), b"")])


def _image(ticket: str) -> bytes:
    image = Image(
        request_id=ticket, index=0, num_images=1, seed=7, width=64, height=64, output_format="png", warnings=(),
        timings={}, attempt=1,
    )  # fmt: skip
    return encode_replies([(image, b"file")])


async def _result(link: RayLink) -> Result:
    async with asyncio.timeout(PATIENCE_S), aclosing(link.follow(REQUEST)) as events:
        *_, last = [event async for event in events]
    assert isinstance(last, Result)
    return last


async def _draws(number: int, ticket: str) -> AsyncGenerator[bytes, None]:
    yield _accepted(ticket)
    yield _image(ticket)


def test_a_request_becomes_events_under_its_own_id() -> None:
    async def run() -> None:
        link, handle = _link(_draws, "a")
        result = await _result(link)
        assert (result.request_id, result.files, result.seeds) == ("r", [b"file"], [7])
        header, files, progress, _ = handle.calls[0]
        assert msgspec.structs.replace(decode_request(header), request_id="r", timeout_s=None) == REQUEST
        assert (files, progress) == ([], True)

    asyncio.run(run())


@pytest.mark.parametrize("lost", [ActorDiedError(), RequestCancelledError("x"), asyncio.CancelledError()])
def test_an_engine_that_dies_is_followed_by_another(lost: BaseException) -> None:
    async def draw(number: int, ticket: str) -> AsyncGenerator[bytes, None]:
        yield _accepted(ticket)
        if number == 1:
            raise lost
        yield _image(ticket)

    async def run() -> None:
        link, handle = _link(draw, "a", "b")
        assert (await _result(link)).files == [b"file"]
        assert len(handle.calls) == 2
        assert b"replica_lost" in link.counts.render()

    asyncio.run(run())


def test_who_stops_following_cancels_the_call() -> None:
    async def draw(number: int, ticket: str) -> AsyncGenerator[bytes, None]:
        yield _accepted(ticket)
        await asyncio.Event().wait()

    async def run() -> None:
        link, handle = _link(draw, "a")
        async with asyncio.timeout(PATIENCE_S):
            async with aclosing(link.follow(REQUEST)) as events:
                assert isinstance(await anext(events), Accepted)
            while not handle.cancelled:
                await asyncio.sleep(0)

    asyncio.run(run())


def test_a_request_that_ends_as_if_cancelled_was_lost_by_the_cluster() -> None:
    async def draw(number: int, ticket: str) -> AsyncGenerator[bytes, None]:
        yield encode_replies([(Failed(request_id=ticket, code="cancelled", message="the client is gone"), b"")])

    async def run() -> None:
        link, _ = _link(draw, "a")
        with pytest.raises(ServerError, match="lost within"):
            await _result(link)

    asyncio.run(run())


def test_engines_that_cannot_be_started_are_told_of() -> None:
    async def draw(number: int, ticket: str) -> AsyncGenerator[bytes, None]:
        raise DeploymentUnavailableError("engine")
        yield b""

    async def run() -> None:
        link, _ = _link(draw, "a")
        with pytest.raises(ServerError, match="cannot be started"):
            await _result(link)

    asyncio.run(run())


def test_all_engines_are_asked_and_those_that_answer_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_FRESH_S", 0.0)

    async def run() -> None:
        link, handle = _link(_draws, "a", "b")
        assert (await link.status()).waiting == 2
        assert await link.metrics() == b'krea2_images{replica="a"} 1\nkrea2_images{replica="b"} 1\n'
        assert (await link.loras()).loadable is False
        handle.replies[Status] = Failed(request_id=None, code="server_unavailable", message="it is being stopped")
        with pytest.raises(ServerError):
            await link.status()
        for problem in (TimeoutError(), DeploymentUnavailableError("engine"), ActorDiedError()):
            handle.unreachable = problem
            with pytest.raises(ServerError, match="takes requests yet"):
                await link.status()

    asyncio.run(run())


def test_no_engine_is_told_of_loras_by_http() -> None:
    async def run() -> None:
        link, _ = _link(_draws, "a")
        for refused in (link.load_lora("ink", None, 1.0), link.unload_lora("ink")):
            with pytest.raises(ConflictError, match="user_config"):
                await refused

    asyncio.run(run())


def test_engines_are_looked_for_from_the_start_until_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        monkeypatch.setattr(link_module, "_LOOK_S", 0.001)
        link, handle = _link(_draws, "a")
        handle.unreachable = TimeoutError()
        async with asyncio.timeout(PATIENCE_S), link.connected(None):
            while not hasattr(handle, "question"):
                await asyncio.sleep(0)
            handle.unreachable = None
            del handle.question
            while not hasattr(handle, "question"):
                await asyncio.sleep(0.001)

    asyncio.run(run())
