"""The front-end against its clients: leases, resending, frames that make no sense."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from engine.errors import ServerError
from launcher.client.async_client import AsyncClient
from launcher.filters.spec import read_specs
from launcher.frontend.delivery.clients import _OUTBOX_MESSAGES, _RESERVE_A_PROCESS, Clients
from launcher.messages.client_messages import (
    Accepted,
    Acknowledge,
    Cancel,
    Generate,
    Image,
    Pong,
    Status,
    StatusReply,
)
from launcher.messages.encoding import decode_reply, encode
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run
from tests.launcher.messages.status_stand_in import STATUS

PROMPT = "a red circle on a blue background"


def test_sending_a_request_twice_is_harmless_and_its_result_is_kept_until_acknowledged(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes:
            socket, rank = fakes.raw(), fakes.ranks[0]
            request = encode(Generate(request_id="twice", prompt=PROMPT, steps=2, seed=1))

            async def replies_until(kind: type) -> list[object]:
                replies: list[object] = []
                while not replies or not isinstance(replies[-1], kind):
                    replies.append(decode_reply((await socket.recv_multipart())[0]))
                return replies

            rank.hold = True  # so that the second comes while the first is under way
            for _ in range(2):
                await socket.send(request)
                assert [type(reply) for reply in await replies_until(Accepted)] == [Accepted]
            rank.resume()
            await replies_until(Image)
            await socket.send(request)
            assert (len(await replies_until(Image)), len(rank.steps)) == (1, 2)
            await socket.send(encode(Acknowledge(request_id="twice")))
            await socket.send(request)
            assert len(await replies_until(Image)) > 1
            assert len(rank.steps) == 4

    run(test())


def test_a_client_that_falls_silent_loses_its_requests(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, lease_s=0.2) as fakes, AsyncClient(fakes.address) as other:
            rank = fakes.ranks[0]
            rank.hold = True
            socket = fakes.raw()
            await socket.send(encode(Generate(request_id="x", prompt=PROMPT)))
            await rank.has_steps(2)
            while (await other.status()).running:
                pass
            assert (await other.status()).failed == 1

    run(test())


def test_a_server_that_stops_says_so_to_those_who_wait(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            call = asyncio.create_task(client.generate(PROMPT))
            await fakes.ranks[0].has_steps(1)
            fakes.stop.set()
            with pytest.raises(ServerError, match="stopped"):
                await call

    run(test())


def test_cancel_of_another_client_s_request_does_nothing(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            AsyncClient(fakes.address) as client,
            AsyncClient(fakes.address) as other,
        ):
            rank = fakes.ranks[0]
            rank.hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=1, request_id="mine"))
            await rank.has_steps(1)
            socket = fakes.raw()
            await socket.send(encode(Cancel(request_id="mine")))
            await other.cancel("mine")
            await other.status()
            rank.hold = False
            rank.release()
            assert (await call).request_id == "mine"

    run(test())


def test_what_a_client_does_not_take_waits_in_bounded_room_and_the_newest_replaces_the_older(run_folder: Path) -> None:
    async def test() -> None:
        context = zmq.asyncio.Context()
        heard: list[object] = []
        clients = Clients(
            f"ipc://{run_folder}/here",
            context,
            run_folder=str(run_folder),
            on_message=lambda _, message, files: heard.append(message),
        )
        tasks = [asyncio.create_task(clients.receive()), asyncio.create_task(clients.send_waiting())]
        socket = context.socket(zmq.DEALER)
        socket.set(zmq.RCVHWM, 1)
        socket.routing_id = b"slow"
        socket.connect(f"ipc://{run_folder}/here")
        await socket.send(encode(Status()))
        async with asyncio.timeout(DEADLINE_S):
            while not heard:
                await asyncio.sleep(0.01)
        big = b"x" * 100_000  # which the kernel does not take many of
        for _ in range(2000):
            clients.send(b"slow", Pong(), big, key=("progress", 7))
            clients.send(b"slow", Pong(), big)
        outbox = clients._outboxes[b"slow"]
        assert sum(key == ("progress", 7) for key in outbox) == 1
        assert len(outbox) <= 1 + _OUTBOX_MESSAGES
        clients.forget(b"slow", 7)
        assert ("progress", 7) not in outbox
        clients.send(b"slow", STATUS, key=("answer", 8))
        async with asyncio.timeout(DEADLINE_S):
            while not isinstance(decode_reply((await socket.recv_multipart())[0]), StatusReply):
                pass
        assert not outbox
        for task in tasks:
            task.cancel()
        context.destroy(linger=0)
        clients.end()

    run(test())


def test_a_burst_of_connections_while_the_event_loop_is_kept_leaves_those_that_are_there_theirs(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.frontend.delivery.clients.room_for_connections", lambda **_: 3)

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            silent = [socket.socket(socket.AF_UNIX) for _ in range(200)]
            for connection in silent:
                connection.setblocking(False)
                with suppress(BlockingIOError):
                    connection.connect(fakes.address.removeprefix("ipc://"))
            time.sleep(0.5)
            while b"krea2_rpc_connections 3.0" not in await client.metrics():
                pass
            assert (await client.generate(PROMPT, seed=1)).seed == 1
            for connection in silent:
                connection.close()
            async with AsyncClient(fakes.address) as another:
                assert (await another.generate(PROMPT, seed=2)).seed == 2

    run(test())


def test_a_call_that_gives_the_server_up_cancels_its_request(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            call = asyncio.create_task(client.generate(PROMPT))
            await fakes.ranks[0].has_steps(1)
            client.server_ended(ServerError("nothing was heard"))
            with pytest.raises(ServerError, match="nothing was heard"):
                await call
            await asyncio.sleep(0)
            async with AsyncClient(fakes.address) as other, asyncio.timeout(DEADLINE_S):
                while (await other.status()).running:
                    await asyncio.sleep(0.01)

    run(test())


def test_a_server_that_is_stopped_waits_until_its_clients_have_their_images(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, drain_s=DEADLINE_S) as fakes:
            socket = fakes.raw()
            await socket.send(encode(Generate(request_id="mine", prompt=PROMPT, steps=1)))
            while not isinstance(decode_reply((await socket.recv_multipart())[0]), Image):
                pass
            fakes.stop.set()
            async with AsyncClient(fakes.address) as other:
                while (await other.status()).ready:  # until it is stopping
                    pass
                for _ in range(20):  # in which one that does not wait could end
                    await other.ping()
            assert not fakes.served.done()
            await socket.send(encode(Acknowledge(request_id="mine")))
            async with asyncio.timeout(DEADLINE_S):
                await fakes.served

    run(test())


def test_connections_leave_files_for_the_processes_of_filters(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserves: list[int] = []

    def room(*, reserve: int, **_: int) -> int:
        reserves.append(reserve)
        return 3

    monkeypatch.setattr("launcher.frontend.delivery.clients.room_for_connections", room)

    async def test() -> None:
        for texts in ([], ["words,workers=2", "words,workers=3"]):
            async with fake_engine(run_folder, filters=read_specs(texts), wait=False):  # type: ignore[arg-type]
                pass

    run(test())
    without, with_five = reserves
    assert with_five == without + 5 * _RESERVE_A_PROCESS
