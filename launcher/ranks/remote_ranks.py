"""Ranks on other machines than the front-end's, under torchrun, which come to it over TCP.

The front-end listens at a free port with CURVE keys that it makes for this run, and leaves both as a `Door` in its
run folder. Rank 0's process puts that into torchrun's store: who can read the store can be a rank, and nobody else gets
past the handshake. Every such rank keeps one connection as its lifeline. Both sides send something over it again and
again. The front-end knows from what cannot be sent that a rank is gone, and the rank from the broken connection that
the front-end is; and both from long silence that the other's machine has vanished. Time in which one of them was
stopped itself is no silence, as it would be for zmq's heartbeats.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
import threading
from pathlib import Path
from typing import NoReturn

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from engine.errors import LaunchError
from launcher.awake import TICK_S, AwakeClock
from launcher.logs import flush_stderr
from launcher.messages.configs import Door
from launcher.messages.connections.entrance import Entrance
from launcher.messages.connections.sockets import bind, send_now
from launcher.messages.encoding import encode
from launcher.messages.keys import ClientKeys, ServerKeys
from launcher.messages.rank_messages import Alive, door_path

_BEAT_S = 2.0  # between a rank's signs of life
SILENT_S = 30.0  # after which the other side counts as gone: longer than a machine is stopped when it is moved
_KEEP_ALIVE = (  # seconds: for whatever forgets idle connections on the way
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 10),
    (zmq.TCP_KEEPALIVE_INTVL, 10),
    (zmq.TCP_KEEPALIVE_CNT, 6),
)
_HANDSHAKE_MS = 5000  # for whoever connects to show the key
_MOST_BYTES = 2**20  # of a message to the front-end: pixels come from rank 0, which is on its machine
_FAREWELL_MS = 1000
_SOCKETS = 4  # of a rank
_STRANGERS = 32  # that may be connected besides, until they have failed to show the key
_BEAT, _END = b"beat", b"end"  # what lifelines carry: the rank is to live, and it is to end since all is done


class RemoteRanks:
    """Holds the front-end's ends of the lifelines of ranks on other machines."""

    def __init__(
        self, server: zmq.asyncio.Socket, context: zmq.asyncio.Context, *, host: str, run_folder: str, ranks: int
    ) -> None:
        """Let them come to a socket of the front-end, whose context has no other authenticator.

        host: the name or address by which they know this machine. ranks: how many come at most. Raises `LaunchError` if
        it is not this machine's.
        """
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._heard: dict[int, float] = {}  # when, from each rank that has come
        public, secret = zmq.curve_keypair()
        rank_public, rank_secret = zmq.curve_keypair()
        # These options are for what is bound from now on, so not for the ranks of this machine.
        self._authenticator = ServerKeys(public, secret, {rank_public: "rank"}).guard(server, context)
        server.set(zmq.MAXMSGSIZE, _MOST_BYTES)
        server.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        address = f"tcp://{_interface(host)}"
        try:
            inside = bind(server, f"ipc://{run_folder}/remote")
            most = _SOCKETS * ranks + _STRANGERS
            self._entrance = Entrance(f"{address}:0", inside, most=most, ipv6=True, clients="ranks on other machines")
        except LaunchError as error:
            self._authenticator.stop()
            raise LaunchError(
                f"cannot listen on {address} for ranks of other machines: {error.message.rpartition(': ')[2]}; "
                "--master-addr must be the name or an address of the machine of rank 0"
            ) from None
        port = int(self._entrance.address.rpartition(":")[2])
        door = Door(
            port=port, server_public=public.decode(), rank_public=rank_public.decode(), rank_secret=rank_secret.decode()
        )
        file = Path(door_path(run_folder))
        try:
            file.write_bytes(msgspec.json.encode(door))
        except OSError as error:
            self._authenticator.stop()
            self._entrance.close()
            raise LaunchError(f"{file}: cannot be written: {error.strerror}") from None

    def came(self, rank: int) -> None:
        """Note that a rank's lifeline has connected, and answer it, or that the rank lives."""
        is_new = rank not in self._heard
        self._heard[rank] = self._loop.time()
        if is_new:
            self.lost()

    def lost(self) -> list[int]:
        """Send to all lifelines, and return the ranks that are gone. To be called several times a second."""
        now = self._loop.time()
        unreached = [rank for rank in self._heard if not send_now(self._server, [lifeline_route(rank), _BEAT])]
        return unreached + [rank for rank, heard in self._heard.items() if now - heard > SILENT_S]

    def close(self, *, done: bool) -> None:
        """Stop listening. The ranks end once the socket is closed, before `end`; if all is done, as if nothing were
        wrong."""
        if done:
            self._server.set(zmq.LINGER, _FAREWELL_MS)
            for rank in self._heard:
                send_now(self._server, [lifeline_route(rank), _END])
        self._entrance.stop_listening()
        self._authenticator.stop()

    def end(self) -> None:
        """Wait for what was sent last to have left, for a second at most."""
        self._entrance.close()


def lifeline_route(rank: int) -> bytes:
    """Return the ZMQ routing id of a rank's lifeline."""
    return b"lifeline-%d" % rank


def _interface(host: str) -> str:
    """Return where to listen for ranks that connect to `host`: a name may stand for another address here."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "*"
    return _bracketed(host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


# ---- the rank's side


def connect(client: zmq.Socket[bytes], door: Door) -> None:
    """Connect a rank's socket to the front-end on the machine that torchrun calls MASTER_ADDR. Raises `OSError`."""
    keys = ClientKeys(door.rank_public.encode(), door.rank_secret.encode(), door.server_public.encode())
    keys.use(client)
    for option, value in _KEEP_ALIVE:
        client.set(option, value)
    found = socket.getaddrinfo(os.environ["MASTER_ADDR"], door.port, type=socket.SOCK_STREAM)
    family, *_, (address, *_) = min(found, key=lambda each: each[0] != socket.AF_INET)
    client.set(zmq.IPV6, int(family == socket.AF_INET6))
    client.connect(f"tcp://{_bracketed(str(address))}:{door.port}")


def hold_lifeline(door: Door, rank: int, timeout_s: float) -> None:
    """Return once the front-end has answered; from then on this process ends when the front-end has ended.

    Ends it also if there is no answer within `timeout_s` seconds.
    """
    lifeline = zmq.Context().socket(zmq.DEALER)
    lifeline.routing_id = lifeline_route(rank)
    events = lifeline.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    connect(lifeline, door)
    lifeline.send(encode(Alive(rank=rank)))
    answered = threading.Event()

    def lose_it() -> NoReturn:
        print(f"rank {rank} ends: it has lost the front-end", file=sys.stderr, flush=True)
        flush_stderr()
        os._exit(1)

    def end_with_front_end() -> None:
        connected, clock = False, AwakeClock()
        heard = sent = clock()
        while True:
            ready, _, _ = zmq.select([lifeline, events], [], [], timeout=TICK_S)
            now = clock()
            if now - sent >= _BEAT_S:
                lifeline.send(encode(Alive(rank=rank)), zmq.NOBLOCK)
                sent = now
            if lifeline in ready:
                heard = now
                if lifeline.recv() == _END:
                    os._exit(0)
                answered.set()
            elif events in ready:  # after all that came over the connection before it broke
                happened = recv_monitor_message(events)["event"]
                if connected and happened == zmq.EVENT_DISCONNECTED:
                    lose_it()
                connected = connected or happened == zmq.EVENT_HANDSHAKE_SUCCEEDED
            elif answered.is_set() and now - heard > SILENT_S:
                lose_it()

    threading.Thread(target=end_with_front_end, daemon=True).start()
    if not AwakeClock().wait(answered.wait, timeout_s):
        where = f"the front-end on {os.environ['MASTER_ADDR']}, port {door.port},"
        sys.exit(f"error: rank {rank} did not reach {where} within {timeout_s:g} s")
