"""The entrance for clients, in front of a zmq socket."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from launcher.messages.connections import entrance as module
from launcher.messages.connections.entrance import Entrance
from launcher.messages.connections.sockets import bind
from tests.launcher.messages.connections.test_open_files import NONE, soft_limit
from tests.launcher.processes import PATIENCE_S, wait_until

KINDS = ("tcp", "ipc")


class Door:
    """An entrance with a ROUTER behind it."""

    def __init__(self, folder: Path, kind: str, most: int) -> None:
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.set(zmq.RCVTIMEO, int(1000 * PATIENCE_S))
        inside = bind(self.router, f"ipc://{folder}/inside")
        address = "tcp://127.0.0.1:0" if kind == "tcp" else f"ipc://{folder}/rpc"
        self.entrance = Entrance(address, inside, most=most, most_frames=8)

    def dealer(self, context: zmq.Context[Any]) -> zmq.Socket[bytes]:
        dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        dealer.set(zmq.RCVTIMEO, int(1000 * PATIENCE_S))
        dealer.connect(self.entrance.address)
        return dealer

    def raw(self) -> socket.socket:
        """A connection that says nothing, and does not wait for being let in."""
        address = self.entrance.address
        if address.startswith("ipc"):
            raw = socket.socket(socket.AF_UNIX)
            raw.setblocking(False)
            with suppress(BlockingIOError):
                raw.connect(address.removeprefix("ipc://"))
        else:
            raw = socket.socket()
            raw.setblocking(False)
            raw.connect_ex(("127.0.0.1", int(address.rpartition(":")[2])))
        return raw

    def close(self) -> None:
        self.entrance.stop_listening()
        self.context.destroy(linger=1000)
        self.entrance.close()


@pytest.fixture(params=KINDS)
def door(request: pytest.FixtureRequest, run_folder: Path) -> Iterator[Door]:
    made = Door(run_folder, request.param, most=2)
    yield made
    if not made.context.closed:
        made.close()


def test_messages_of_any_size_pass_both_ways_and_the_last_ones_arrive_at_the_end(door: Door) -> None:
    big = bytes(range(256)) * 40_000  # more than all buffers between
    with zmq.Context() as context, door.dealer(context) as dealer:
        dealer.send_multipart([b"here", big])
        name, *frames = door.router.recv_multipart()
        assert frames == [b"here", big]
        for number in range(3):
            door.router.send_multipart([name, b"%d" % number, big])
        assert dealer.recv_multipart() == [b"0", big]
        dealer.set(zmq.RCVHWM, 0)
        assert [dealer.recv_multipart() for _ in range(2)] == [[b"1", big], [b"2", big]]
        door.router.send_multipart([name, b"closing"])
        door.close()
        assert dealer.recv() == b"closing"


def test_others_wait_at_the_bound_and_are_let_in_below_it(door: Door) -> None:
    silent = [door.raw() for _ in range(300)]
    wait_until(lambda: door.entrance.connections == 2, "two connections")
    with zmq.Context() as context, door.dealer(context) as dealer:
        dealer.send(b"me")
        assert not door.router.poll(300)
        assert door.entrance.connections == 2
        for raw in silent:
            raw.close()
        assert door.router.recv_multipart()[1] == b"me"
        wait_until(lambda: door.entrance.connections == 1, "the end of the others")
        dealer.close(linger=0)
    wait_until(lambda: door.entrance.connections == 0, "the end of the last")


def test_a_message_of_too_many_frames_ends_its_connection_alone(door: Door) -> None:
    with zmq.Context() as context, door.dealer(context) as dealer, door.dealer(context) as other:
        other.send(b"one")
        assert door.router.recv_multipart()[1] == b"one"
        with dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            dealer.send_multipart([b"x"] * 9)
            assert monitor.poll(int(1000 * PATIENCE_S)), "its connection goes on"
            dealer.disable_monitor()
        other.send_multipart([b"x"] * 8)
        assert len(door.router.recv_multipart()) == 1 + 8


def test_silent_connections_make_room_and_those_that_speak_stay(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    look, may_look = Entrance._look, threading.Event()

    def look_when_told(entrance: Entrance) -> None:
        if may_look.is_set():
            may_look.clear()
            look(entrance)
        else:
            entrance._loop.call_later(0.01, entrance._look)

    monkeypatch.setattr(Entrance, "_look", look_when_told)
    monkeypatch.setattr(module, "log_event", lambda event, **_: logged.append(event))
    monkeypatch.setattr(module, "_LOOK_S", 0.1)
    monkeypatch.setattr(module, "SILENT_S", 1.0)
    monkeypatch.setattr(module, "_CALM_S", 0.2)
    with zmq.Context() as context, door.dealer(context) as one, door.raw():
        one.send(b"one")
        first = door.router.recv_multipart()[0]
        wait_until(lambda: door.entrance.connections == 2, "a silent one")
        with door.dealer(context) as two:
            two.send(b"two")

            said = b""
            while said != b"two":  # `one` says something before each look
                if said == b"ping":
                    may_look.set()
                one.send(b"ping")
                _, said = door.router.recv_multipart()
            door.router.send_multipart([first, b"still here"])
            assert one.recv() == b"still here"
            one.close(linger=0)
            two.close(linger=0)
    wait_until(lambda: not door.entrance.connections, "the end of all")

    def told() -> bool:
        may_look.set()
        return "rpc connections not full" in logged

    wait_until(told, "the log")
    assert logged.count("rpc connections full") == 1


def test_without_files_connections_wait_until_there_are_some(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.1)
    with zmq.Context() as context:
        dealer = door.dealer(context)
        dealer.send(b"one")
        door.router.recv_multipart()
        raw = socket.socket(socket.AF_UNIX if "ipc" in door.entrance.address else socket.AF_INET)
        with soft_limit(NONE):
            at = door.entrance.address.removeprefix("ipc://")
            raw.connect(at if raw.family == socket.AF_UNIX else ("127.0.0.1", int(at.rpartition(":")[2])))
            dealer.send(b"two")
            assert door.router.recv_multipart()[1] == b"two"
            assert door.entrance.connections == 1
        wait_until(lambda: door.entrance.connections == 2, "a file for it")
        raw.close()
        dealer.close(linger=0)


def test_a_connection_that_ends_while_its_last_bytes_are_on_their_way_says_nothing(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gc.collect()  # what other tests have left may have something to say
    caplog.clear()
    sizes = range(96 * 1024, 480 * 1024, 16 * 1024)  # of which some are a little more than the kernel takes at once
    inside = f"ipc://{run_folder}/inside"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(inside.removeprefix("ipc://"))
        listening.listen(len(sizes))
        entrance = Entrance(f"ipc://{run_folder}/rpc", inside, most=len(sizes))
        clients = [socket.socket(socket.AF_UNIX) for _ in sizes]
        for client, size in zip(clients, sizes, strict=True):
            client.connect(f"{run_folder}/rpc")
            threading.Thread(target=_send_and_close, args=(client, size), daemon=True).start()
        ends = [listening.accept()[0] for _ in sizes]
        wait_until(lambda: sum(client.fileno() < 0 for client in clients) > 1, "clients that have gone")
        received = [sum(map(len, iter(lambda end=end: end.recv(1 << 20), b""))) for end in ends]
        assert sorted(received) == [*sizes]
        wait_until(lambda: entrance.connections == 0, "the end of all")
        for end in ends:
            end.close()
        entrance.stop_listening()
        entrance.close()
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


def _send_and_close(client: socket.socket, size: int) -> None:
    with client:
        client.sendall(bytes(size))
