"""An engine's actor over a client that draws nothing: what it passes on, what it tells Serve, and how it ends."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

import msgspec
import pytest

from engine.errors import ArgumentError, Krea2Error, LaunchError, LoraError, QueueFullError, ServerError
from launcher.messages.client_messages import (
    Accepted,
    Failed,
    Generate,
    Image,
    ListLoras,
    Loras,
    Metrics,
    MetricsReply,
    Ping,
    Reply,
    Status,
    StatusReply,
)
from launcher.messages.encoding import encode_request
from launcher.ray import engine_replica
from launcher.ray.engine_replica import EngineReplica
from launcher.ray.wire import decode_named, decode_replies
from tests.launcher.messages.status_stand_in import STATUS

PATIENCE_S = 60.0
REQUEST = Generate(request_id="r", prompt="a fox", pictures=("image",))
ACCEPTED = Accepted(request_id="r", position=0, estimated_s=None, attempt=0)
IMAGE = Image(
    request_id="r", index=0, num_images=1, seed=7, width=64, height=64, output_format="png", warnings=(), timings={},
    attempt=0,
)  # fmt: skip


class FakeClient:
    """Accepts a request and answers with an image, or with `error`; `hangs` before the image."""

    def __init__(self) -> None:
        self.got: list[tuple[Generate, dict[str, bytes]]] = []
        self.error: Krea2Error | None = None
        self.hangs = False
        self.cancelled = 0
        self.said = STATUS
        self.closed = False
        self.loaded: list[str] = []

    async def replies(self, request: Generate, files: Mapping[str, bytes]) -> AsyncGenerator[tuple[Reply, bytes], None]:
        self.got.append((request, dict(files)))
        try:
            yield ACCEPTED, b""
            if self.hangs:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
            yield IMAGE, b"file"
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def status(self) -> StatusReply:
        if self.error is not None:
            raise self.error
        return self.said

    async def metrics(self) -> bytes:
        return b"metrics"

    async def loras(self) -> Loras:
        return Loras(request_id="own", loras=(), merged=(), loadable=False)

    async def load_lora(self, name: str, path: str, strength: float) -> None:
        if name == "damaged":
            raise LoraError(f"{path}: is damaged")
        self.loaded.append(name)

    async def close(self) -> None:
        self.closed = True


class _WarmingUp(FakeClient):
    """One whose ranks answer when they have been asked for their status so often; or are `given_up` then."""

    def __init__(self, polls: int, *, given_up: bool = False) -> None:
        super().__init__()
        self._polls, self._given_up = polls, given_up

    async def status(self) -> StatusReply:
        self._polls -= 1
        if self._polls > 0:
            return msgspec.structs.replace(STATUS, ready=False, not_ready="it warms up")
        if self._given_up:
            return msgspec.structs.replace(STATUS, ready=False, not_ready="rank 0 dies", given_up=True)
        return STATUS


def _started_with(monkeypatch: pytest.MonkeyPatch, client: FakeClient) -> EngineReplica:
    async def launch(*_: object, **__: object) -> FakeClient:
        return client

    monkeypatch.setattr("launcher.setup.async_launch.launch_frontend_async", launch)
    monkeypatch.setattr(engine_replica, "_POLL_S", 0.001)
    replica = EngineReplica({"model": "demo", "device": "cpu"}, name="x1")
    asyncio.run(asyncio.wait_for(replica.start(), PATIENCE_S))
    return replica


def test_an_engine_takes_requests_once_it_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    client = _WarmingUp(polls=4)
    replica = _started_with(monkeypatch, client)
    assert client._polls == 0
    assert not client.closed
    assert replica._client is client  # type: ignore[comparison-overlap]


def test_an_engine_that_cannot_be_warmed_up_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    client = _WarmingUp(polls=2, given_up=True)
    with pytest.raises(LaunchError, match="the ranks were given up: rank 0 dies"):
        _started_with(monkeypatch, client)
    assert client.closed


def test_an_engine_that_takes_long_to_warm_up_starts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_replica, "_WARM_UP_S", 0.05)
    client = _WarmingUp(polls=10**9)
    assert _started_with(monkeypatch, client)._client is client  # type: ignore[comparison-overlap]


def _replica() -> tuple[EngineReplica, FakeClient]:
    replica, client = EngineReplica({}, name="x1"), FakeClient()
    replica._client = client  # type: ignore[assignment]
    return replica, client


async def _draw(replica: EngineReplica, header: bytes, files: list[bytes]) -> list[tuple[Reply, bytes]]:
    async with asyncio.timeout(PATIENCE_S):
        chunks = [chunk async for chunk in replica.draw(header, files, False, b"")]
    return [reply for chunk in chunks for reply in decode_replies(chunk)]


def test_a_request_is_passed_on_with_its_files_and_its_replies_come_back() -> None:
    async def run() -> None:
        replica, client = _replica()
        request = msgspec.structs.replace(REQUEST, caller="ada")
        assert await _draw(replica, encode_request(request), [b"picture"]) == [(ACCEPTED, b""), (IMAGE, b"file")]
        assert client.got == [(request, {"image": b"picture"})]

    asyncio.run(run())


def test_what_fails_is_said_in_a_message_and_never_raised() -> None:
    async def run() -> None:
        replica, client = _replica()
        client.error = QueueFullError("the queue is full", retry_after_s=3.0)
        *_, (failed, _) = await _draw(replica, encode_request(REQUEST), [b"picture"])
        assert failed == Failed(request_id="r", code="queue_full", message="the queue is full", retry_after_s=3.0)
        for header, files, code in (
            (b"no message", [], "invalid_parameter"),
            (encode_request(Ping()), [], "internal_error"),
            (encode_request(REQUEST), [b"one", b"two"], "invalid_parameter"),
            (encode_request(REQUEST), [b""], "invalid_parameter"),
        ):
            ((failed, _),) = await _draw(replica, header, files)
            assert isinstance(failed, Failed)
            assert failed.code == code
        assert len(client.got) == 1

    asyncio.run(run())


def test_who_goes_away_cancels_the_request() -> None:
    async def run() -> None:
        replica, client = _replica()
        client.hangs = True
        async with aclosing(replica.draw(encode_request(REQUEST), [b"picture"], True, b"")) as chunks:
            await anext(chunks)
        assert client.cancelled == 1
        reading = asyncio.create_task(_draw(replica, encode_request(REQUEST), [b"picture"]))
        while len(client.got) < 2:
            await asyncio.sleep(0)
        reading.cancel()  # as Serve does
        with suppress(asyncio.CancelledError):
            await reading
        assert client.cancelled == 2

    asyncio.run(run())


def test_questions_are_answered_with_the_name_where_all_are_asked() -> None:
    async def run() -> None:
        replica, client = _replica()
        name, chunk = decode_named(await replica.report(encode_request(Status())))
        assert (name, decode_replies(chunk)) == ("x1", [(STATUS, b"")])
        ((reply, file),) = decode_replies(await replica.ask(encode_request(Metrics())))
        assert (reply, file) == (MetricsReply(), b"metrics")
        ((reply, _),) = decode_replies(await replica.ask(encode_request(ListLoras(request_id="q"))))
        assert isinstance(reply, Loras)
        for question in (encode_request(Ping()), b"nothing"):
            ((reply, _),) = decode_replies(await replica.ask(question))
            assert isinstance(reply, Failed)
        client.error = ServerError("gone")
        ((reply, _),) = decode_replies(await replica.ask(encode_request(Status())))
        assert reply == Failed(request_id=None, code="server_unavailable", message="gone")

    asyncio.run(run())


def test_serve_hears_how_much_work_there_is_and_of_ranks_that_were_given_up() -> None:
    async def run() -> None:
        replica, client = _replica()
        await replica.check_health()
        assert await replica.record_routing_stats() == {"backlog_s": 2.5, "waiting": 1, "running": 2}
        assert await replica.record_autoscaling_stats() == {"backlog_s": 2.5, "waiting": 1}
        client.said = msgspec.structs.replace(STATUS, ready=False, not_ready="ranks are replaced", backlog_s=None)
        await replica.check_health()
        assert math.isnan((await replica.record_routing_stats())["backlog_s"])
        assert (await replica.record_autoscaling_stats())["backlog_s"] == 0.0
        client.said = msgspec.structs.replace(STATUS, ready=False, not_ready="rank 0 died", given_up=True)
        with pytest.raises(RuntimeError, match="rank 0 died"):
            await replica.check_health()
        client.error = ServerError("no answer")
        with pytest.raises(RuntimeError, match="no answer"):
            await replica.check_health()

    asyncio.run(run())


def test_the_actor_of_a_front_end_that_died_fails_its_calls_and_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        replica, client = _replica()
        exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(engine_replica, "_LAST_WORDS_S", 0.01)
        monkeypatch.setattr(os, "_exit", exited.set_result)
        replica._front_end_ended(ServerError("it was killed"))
        ((failed, _),) = await _draw(replica, encode_request(REQUEST), [b"picture"])
        assert isinstance(failed, Failed)
        assert failed.code == "server_unavailable"
        assert "it was killed" in failed.message
        with pytest.raises(RuntimeError):
            await replica.check_health()
        async with asyncio.timeout(PATIENCE_S):
            assert await exited == 1
        assert client.got == []

    asyncio.run(run())


def test_an_engine_that_is_stopped_takes_its_actor_with_it_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        replica, client = _replica()
        monkeypatch.setattr(os, "_exit", lambda _: pytest.fail("the actor is stopped by Serve"))
        await replica.stop()
        replica._front_end_ended(ServerError("the client was closed"))
        await replica.stop()
        assert client.closed
        with pytest.raises(RuntimeError, match="is being stopped"):
            await replica.check_health()

    asyncio.run(run())


def test_what_ray_does_to_processes_is_undone_or_told_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(os, "nice", lambda _: 15)
    engine_replica._leave_threads_to_ranks()
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_lora_that_cannot_be_used_keeps_an_engine_from_starting_and_ends_none_that_draws(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        declared = {"loras": ["damaged=/loras/damaged.safetensors", "ink=/loras/ink.safetensors"]}
        replica, _ = _replica()
        with pytest.raises(ArgumentError, match="user_config must be a map with loras"):
            await replica.reconfigure({"tp": 4})
        with pytest.raises(LoraError, match="is damaged"):
            await replica.reconfigure(declared)
        replica, client = _replica()
        await replica.reconfigure({"loras": []})
        await replica.reconfigure(declared)
        assert client.loaded == ["ink"]
        await replica.reconfigure({"lora": []})

    asyncio.run(run())
    assert [record.message for record in caplog.records].count("a declared LoRA cannot be used") == 2
