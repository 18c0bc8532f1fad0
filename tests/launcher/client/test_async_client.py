"""The client for asyncio: its calls, and what becomes of them when nobody answers."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path
from uuid import UUID

import pytest
import zmq
import zmq.asyncio
from PIL import Image as PIL

from engine.errors import (
    ArgumentError,
    CancelledError,
    ServerError,
)
from launcher.client import connection as connection_module
from launcher.client.async_client import AsyncClient
from launcher.client.connection import Connection
from launcher.client.results import ImageFile, Result, Usage
from launcher.messages.client_messages import Accepted, Failed, Pong, Progress
from launcher.messages.encoding import encode
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run
from tests.launcher.frontend.fake_clock import LONG_S, FakeClock

PROMPT = "a red circle on a blue background"


def test_the_events_of_a_stream_tell_its_life(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            events = [event async for event in client.stream(PROMPT, steps=4, num_images=2, output_format="jpeg")]
            assert {event.request_id for event in events} == {events[0].request_id}
            assert {event.attempt for event in events} == {1}
            assert [type(event) for event in events if not isinstance(event, Progress)] == [
                Accepted,
                ImageFile,
                ImageFile,
                Result,
            ]
            progress = [(event.step, event.steps) for event in events if isinstance(event, Progress)]
            assert progress == [(2, 8), (4, 8), (6, 8), (8, 8)]
            result, files = events[-1], [event for event in events if isinstance(event, ImageFile)]
            assert isinstance(result, Result)
            assert [image.usage for image in files] == [Usage(text_tokens=7, image_tokens=64)] * 2
            assert (result.usage.image_tokens, result.usage.total_tokens) == (2 * 64, 7 + 2 * 64)
            assert {PIL.open(io.BytesIO(image.file)).format for image in files} == {"JPEG"}

    run(test())


def test_cancelling_the_call_or_leaving_the_stream_cancels_the_request(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=5))
            await rank.has_steps(2)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            events = client.stream(PROMPT)
            assert isinstance(await anext(events), Accepted)
            await events.aclose()  # type: ignore[attr-defined]
            status = await client.status()
            assert (status.running, status.waiting, status.failed) == (0, 0, 2)

    run(test())


def test_a_server_that_vanishes_is_noticed(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PING_S", 0.05)

    async def test() -> None:
        context = zmq.asyncio.Context()
        server = context.socket(zmq.ROUTER)
        server.bind(f"ipc://{run_folder}/server")

        async def answer_once() -> None:
            name, _ = await server.recv_multipart()
            await server.send_multipart([name, encode(Pong())])

        answering = asyncio.create_task(answer_once())
        try:
            async with AsyncClient(f"ipc://{run_folder}/server") as client:
                monkeypatch.setattr(connection_module, "SILENCE_S", 0.3)
                with pytest.raises(ServerError, match=r"silent for 0\.3 s"):
                    await client.generate(PROMPT)
                with pytest.raises(ServerError, match="silent"):
                    await client.status()
            await answering
        finally:
            context.destroy(linger=0)

    run(test())


def test_a_client_that_was_stopped_waits_for_what_came_meanwhile(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in an event loop of the user's own."""
    clock = FakeClock(monkeypatch)

    async def test() -> None:
        async with fake_engine(run_folder, lease_s=3 * LONG_S, step_timeout_s=3 * LONG_S) as fakes:
            client = AsyncClient(fakes.address)
            connecting = asyncio.create_task(client.connect())
            await asyncio.sleep(0)
            await clock.pause()
            await connecting
            fakes.ranks[0].hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=2))
            await fakes.ranks[0].has_steps(2)
            await clock.pause()
            assert not call.done()
            fakes.ranks[0].resume()
            assert (await call).seeds
            await client.close()

    asyncio.run(test())


def test_a_client_that_was_stopped_renews_its_lease_at_once(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PING_S", LONG_S)
    clock = FakeClock(monkeypatch)

    async def test() -> None:
        context = zmq.asyncio.Context()
        server = context.socket(zmq.ROUTER)
        server.bind(f"ipc://{run_folder}/server")
        client = AsyncClient(f"ipc://{run_folder}/server")
        try:
            connecting = asyncio.create_task(client.connect())
            name, ping = await server.recv_multipart()
            await server.send_multipart([name, encode(Pong())])
            await connecting
            await clock.pause()
            async with asyncio.timeout(DEADLINE_S):
                assert await server.recv_multipart() == [name, ping]
        finally:
            await client.close()
            context.destroy(linger=0)

    asyncio.run(test())


def test_a_lost_request_is_sent_again(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PING_S", 0.05)
    monkeypatch.setattr(connection_module, "ASK_AGAIN_S", 0.2)

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            send, lost = Connection._send_frames, []

            def lose_the_first(connection: Connection, frame: bytes, *files: bytes) -> None:
                if b"generate" in frame and not lost:
                    lost.append(frame)
                else:
                    send(connection, frame, *files)

            monkeypatch.setattr(Connection, "_send_frames", lose_the_first)
            assert (await client.generate(PROMPT, steps=1)).seeds
            assert lost

    run(test())


def test_files_that_are_long_on_their_way_are_waited_for_and_not_sent_twice(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PING_S": 0.02, "ASK_AGAIN_S": 0.02, "_SLOWEST": 1}.items():
        monkeypatch.setattr(connection_module, name, value)
    request_id, file = "7", bytes(100)  # 100 s

    async def test() -> None:
        context = zmq.asyncio.Context()
        server = context.socket(zmq.ROUTER)
        server.bind(f"ipc://{run_folder}/server")

        async def come(kind: bytes) -> list[bytes]:
            async with asyncio.timeout(DEADLINE_S):
                while kind not in (frames := await server.recv_multipart())[1]:
                    await server.send_multipart([frames[0], encode(Pong())])
            return frames

        client = AsyncClient(f"ipc://{run_folder}/server")
        connecting = asyncio.create_task(client.connect())
        call = None
        try:
            name, _ = await server.recv_multipart()
            await server.send_multipart([name, encode(Pong())])
            await connecting
            monkeypatch.setattr(connection_module, "SILENCE_S", 0.2)
            call = asyncio.create_task(client.generate(PROMPT, image=file, request_id=request_id))
            _, _, sent = await come(b"generate")
            assert sent == file
            pings = [(await server.recv_multipart())[1:] for _ in range(30)]  # three times as long as the silence
            assert {len(frames) for frames in pings} == {1}
            assert all(b"ping" in frame for (frame,) in pings)
            assert not call.done()
            for _ in pings:
                await server.send_multipart([name, encode(Pong())])
            assert (await come(b"generate"))[2] == file  # they have come, and nothing of the request
            await server.send_multipart(
                [name, encode(Failed(request_id=request_id, code="invalid_parameter", message="no"))]
            )
            with pytest.raises(ArgumentError, match="no"):
                await call
        finally:
            if call is not None:
                call.cancel()
            await client.close()
            context.destroy(linger=0)

    run(test())


def test_nobody_at_the_address_is_an_error_in_time(run_folder: Path) -> None:
    async def test() -> None:
        client = AsyncClient(f"ipc://{run_folder}/nobody", connect_timeout_s=0.2)
        with pytest.raises(ServerError, match="no server answers at ipc://"):
            await client.status()
        with pytest.raises(ArgumentError, match="cannot connect to 'nonsense'"):
            await AsyncClient("nonsense").ping()
        for address, hint in (
            ("http://127.0.0.1:30000", "the address for HTTP; krea2 serve prints the one for Python after `rpc:`"),
            ("localhost:5555", "did you mean tcp://localhost:5555?"),
            ("/tmp/clients", "did you mean ipc:///tmp/clients?"),
        ):
            with pytest.raises(ArgumentError, match=rf"^address must be tcp://.*, got '{address}': {re.escape(hint)}$"):
                AsyncClient(address)

    run(test())


def test_one_request_id_is_one_request(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            call = asyncio.create_task(client.generate(PROMPT, request_id="same"))
            await fakes.ranks[0].has_steps(1)
            with pytest.raises(ArgumentError, match="'same' is in use"):
                await client.generate(PROMPT, request_id="same")
            with pytest.raises(ArgumentError, match="request_id"):
                await client.generate(PROMPT, request_id="x" * 65)
            await client.cancel("same")
            with pytest.raises(CancelledError):
                await call

    run(test())


def test_every_random_name_is_one_that_zmq_takes(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module.uuid, "uuid4", lambda: UUID(int=0))

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            assert await client.ping() >= 0

    run(test())
