"""The front-end's door for ranks on other machines, and their lifelines, without torchrun."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from engine.errors import LaunchError, RankError
from launcher.client.async_client import AsyncClient
from launcher.messages.configs import Door
from launcher.messages.connections import entrance
from launcher.messages.encoding import encode
from launcher.messages.keys import make_keys
from launcher.messages.rank_messages import Alive, Hello, decode_report, door_path, ranks_address
from launcher.ranks import remote_ranks
from launcher.ranks.remote_ranks import RemoteRanks, _interface, connect, lifeline_route
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, fake_engine, run

HOLD_LIFELINE = """
import sys, threading
import msgspec
from pathlib import Path
from launcher.messages.configs import Door
from launcher.ranks.remote_ranks import hold_lifeline
hold_lifeline(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Door), 1, timeout_s=float(sys.argv[2]))
print("held", flush=True)
threading.Event().wait()
"""


@pytest.fixture(autouse=True)
def _master(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def read_door(run_folder: Path) -> Door:
    return msgspec.json.decode(Path(door_path(str(run_folder))).read_bytes(), type=Door)


@asynccontextmanager
async def door_of(run_folder: Path) -> AsyncIterator[tuple[zmq.asyncio.Socket, Door, RemoteRanks]]:
    """A server as the front-end's, with a door."""
    context = zmq.asyncio.Context()
    server = context.socket(zmq.ROUTER)
    server.set(zmq.ROUTER_MANDATORY, 1)
    server.set(zmq.LINGER, 0)
    server.bind(ranks_address(str(run_folder), 0))
    remote = RemoteRanks(server, context, host="127.0.0.1", run_folder=str(run_folder), ranks=2)
    try:
        yield server, read_door(run_folder), remote
    finally:
        remote.close(done=False)
        server.close()
        remote.end()
        context.destroy(linger=0)


@asynccontextmanager
async def lifeline(door: Door, rank: int) -> AsyncIterator[zmq.asyncio.Socket]:
    """A rank's, in this process."""
    context = zmq.asyncio.Context()
    wire = context.socket(zmq.DEALER)
    wire.routing_id = lifeline_route(rank)
    connect(wire, door)
    await wire.send(encode(Alive(rank=rank)))
    try:
        yield wire
    finally:
        context.destroy(linger=0)


async def receive(server: zmq.asyncio.Socket) -> list[bytes]:
    async with asyncio.timeout(DEADLINE_S):
        return await server.recv_multipart()


def test_only_a_rank_with_the_keys_is_heard(run_folder: Path) -> None:
    async def test() -> None:
        async with door_of(run_folder) as (server, door, _):
            context = zmq.asyncio.Context()
            context.setsockopt(zmq.LINGER, 0)  # for a socket that is collected before the end, too
            other_public, other_secret = (key.decode() for key in zmq.curve_keypair())
            strangers = {
                "another key": msgspec.structs.replace(door, rank_public=other_public, rank_secret=other_secret),
                "another server": msgspec.structs.replace(door, server_public=other_public),
            }
            for name, known in strangers.items():
                wire = context.socket(zmq.DEALER)
                wire.routing_id = name.encode()
                connect(wire, known)
                await wire.send(encode(Alive(rank=1)))
            plain = context.socket(zmq.DEALER)
            plain.connect(f"tcp://127.0.0.1:{door.port}")
            await plain.send(encode(Alive(rank=1)))
            async with lifeline(door, 1):
                assert [(await receive(server))[0]] == [lifeline_route(1)]
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await server.recv_multipart()
            context.destroy(linger=0)

    run(test())


def test_connections_that_show_no_key_are_closed_and_keep_nobody_out(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_ranks, "_HANDSHAKE_MS", 500)

    async def test() -> None:
        async with door_of(run_folder) as (server, door, _):
            greeting = b"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE".ljust(64, b"\0")
            endless = greeting + b"\6" + struct.pack(">Q", 2**40)  # the head of a command of a terabyte
            given = [b"", b"GET / HTTP/1.1\r\n\r\n", greeting, endless]
            strangers = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(10) for _ in given]
            for number, (_, writer) in enumerate(strangers):
                writer.write(given[number % len(given)])
            async with lifeline(door, 1):
                assert decode_report((await receive(server))[1]) == Alive(rank=1)
            async with asyncio.timeout(DEADLINE_S):
                for reader, writer in strangers:
                    await asyncio.gather(reader.read(), return_exceptions=True)  # to the end, or to a reset
                    writer.close()

    run(test())


def test_ranks_of_the_same_machine_need_no_keys_and_send_pictures_of_any_size(run_folder: Path) -> None:
    async def test() -> None:
        async with door_of(run_folder) as (server, _, _):
            context = zmq.asyncio.Context()
            local = context.socket(zmq.DEALER)
            local.connect(ranks_address(str(run_folder), 0))
            await local.send(bytes(5_000_000))
            assert len((await receive(server))[1]) == 5_000_000
            context.destroy(linger=0)

    run(test())


def test_the_front_end_learns_that_a_lifeline_is_broken(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder, tp=2, ranks_host="127.0.0.1") as fakes,
            AsyncClient(fakes.address) as client,
        ):
            async with lifeline(read_door(run_folder), 1) as wire:
                async with asyncio.timeout(DEADLINE_S):
                    assert await wire.recv() == b"beat"
                fakes.ranks[1].hold = True
                call = asyncio.create_task(client.generate("a red circle"))
                await fakes.ranks[1].has_steps(1)
                assert not fakes.served.done()
            for waiting in (call, fakes.served):
                with pytest.raises(RankError, match=r"^rank 1 died, or its machine cannot be reached$"):
                    await waiting

    run(test())


def test_strangers_at_the_door_leave_ranks_theirs(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (("_STRANGERS", 2), ("_HANDSHAKE_MS", 500), ("SILENT_S", DEADLINE_S)):
        monkeypatch.setattr(remote_ranks, name, value)

    async def test() -> None:
        async with door_of(run_folder) as (server, door, remote), lifeline(door, 0) as first:
            assert (await receive(server))[0] == lifeline_route(0)
            remote.came(0)
            strangers = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(30)]
            async with asyncio.timeout(DEADLINE_S):
                while "rpc connections full" not in caplog.messages:
                    await asyncio.sleep(0.01)
                async with lifeline(door, 1):  # which waits for those that cannot show the key
                    assert (await receive(server))[0] == lifeline_route(1)
                assert await first.recv() == b"beat"
            assert remote._entrance.connections <= 2 * remote_ranks._SOCKETS + 2
            assert remote.lost() == []
            for stranger in strangers:
                stranger.close()

    run(test())


def test_clients_and_ranks_have_keys_of_their_own(run_folder: Path) -> None:
    async def test() -> None:
        key = make_keys(run_folder / "keys", "studio")
        async with (
            fake_engine(run_folder, tp=2, ranks_host="127.0.0.1", rpc_keys=str(run_folder / "keys")) as fakes,
            lifeline(read_door(run_folder), 1) as wire,
            AsyncClient(fakes.address, key=key) as client,
        ):
            async with asyncio.timeout(DEADLINE_S):
                assert await wire.recv() == b"beat"
                await client.ping()

    run(test())


def test_a_rank_of_another_version_is_refused(run_folder: Path) -> None:
    class OldRank(FakeRank):
        def send(self, message: object, *frames: bytes) -> None:
            if isinstance(message, Hello) and self.rank == 1:
                message = Hello(rank=1, version="0.0.1")
            super().send(message, *frames)  # type: ignore[arg-type]

    async def test() -> None:
        with pytest.raises(LaunchError, match=r"rank 1 must be of krea2-engine \d.*, and is of 0\.0\.1$"):
            async with fake_engine(run_folder, tp=2, make_rank=OldRank):
                pass

    run(test())


@pytest.mark.parametrize("done", [True, False])
def test_a_rank_ends_with_the_front_end_and_knows_whether_all_is_done(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    monkeypatch.setattr(remote_ranks, "_FAREWELL_MS", int(1000 * DEADLINE_S))
    monkeypatch.setattr(entrance, "_FAREWELL_S", DEADLINE_S)

    async def test() -> None:
        async with fake_engine(run_folder, tp=2, ranks_host="127.0.0.1") as fakes:
            rank = await asyncio.create_subprocess_exec(
                sys.executable, "-c", HOLD_LIFELINE, door_path(str(run_folder)), str(DEADLINE_S),
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert rank.stdout is not None
            try:
                async with asyncio.timeout(DEADLINE_S):
                    assert await rank.stdout.readline() == b"held\n"
                    if done:
                        fakes.stop_now.set()
                    else:
                        fakes.ranks[0].fail("internal_error", "rank 0 cannot go on")
                    _, stderr = await rank.communicate()
            finally:
                if rank.returncode is None:
                    rank.kill()
                    await rank.wait()
            said = stderr.decode()
            assert (rank.returncode, said) == ((0, "") if done else (1, "rank 1 ends: it has lost the front-end\n"))

    run(test())


def test_a_rank_that_reaches_nobody_says_where_it_tried(run_folder: Path) -> None:
    async def test() -> None:
        async with door_of(run_folder):
            pass  # nobody listens any more, but the file is there
        port = read_door(run_folder).port
        rank = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLD_LIFELINE, door_path(str(run_folder)), "0.5", stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(DEADLINE_S):
            _, stderr = await rank.communicate()
        said = f"error: rank 1 did not reach the front-end on 127.0.0.1, port {port}, within 0.5 s\n"
        assert (rank.returncode, stderr.decode()) == (1, said)

    run(test())


def test_a_host_that_is_not_this_machine_is_refused(run_folder: Path) -> None:
    async def test() -> None:
        context = zmq.asyncio.Context()
        server = context.socket(zmq.ROUTER)
        try:
            with pytest.raises(LaunchError, match=r"cannot listen on tcp://192\.0\.2\.1 .*; --master-addr must be"):
                RemoteRanks(server, context, host="192.0.2.1", run_folder=str(run_folder), ranks=2)
        finally:
            context.destroy(linger=0)

    run(test())


@pytest.mark.parametrize(
    ("host", "interface"),
    [
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("10.1.2.3", "10.1.2.3"),
        ("fd00::1", "[fd00::1]"),
        ("node-0", "*"),
    ],
)
def test_the_door_is_open_no_further_than_it_must_be(host: str, interface: str) -> None:
    assert _interface(host) == interface
