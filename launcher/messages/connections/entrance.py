"""Where clients connect: as many at a time as this process has files for, whatever comes.

libzmq accepts whoever connects, and when that is one file too many it aborts the process (ipc) or spins (tcp), with no
file left for the ranks that are to replace lost ones. A zmq socket that stops listening ends the connections it has. So
the front-end's listens in its run folder alone, and clients connect to a socket of our own, from which each connection
is relayed there, byte by byte, in a thread that goes on whatever keeps the event loop of the process.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import zmq
from zmq.utils.monitor import recv_monitor_message

from launcher.logs import log_event
from launcher.messages.connections.framing import Unfinished
from launcher.messages.connections.sockets import bind, remove_socket

FILES = 3  # of a connection: the client's, and both ends of the one inside
MOST = 2048
SILENT_S = 30.0  # after which a connection makes room for another; clients send a ping every 2 s
_BACKLOG = 128  # connections that wait to be let in
_LOOK_S = 1.0
_CALM_S = 10.0  # with room, before the log says so
_FAREWELL_S = 1.0  # for the last bytes to leave
_KEEP_ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPALIVE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


class Entrance:
    """Listens at `address`, and relays up to `most` connections to the unix socket at the address `inside`.

    While there are as many, others wait in the kernel's short queue, or are refused by it, and connections that have
    been silent for 30 s make room for them. `address` is where clients connect: with the port that was taken. ipv6: see
    `bind`. clients: who they are, for the log. most_frames: of a message, for clients that are not ours: a connection
    with a longer one ends, and so does that whose message began first when those that have not come whole have more
    than `MOST_UNDER_WAY` bytes together. Raises `LaunchError` if it cannot be listened on.
    """

    def __init__(
        self,
        address: str,
        inside: str,
        *,
        most: int = MOST,
        ipv6: bool = False,
        clients: str | None = None,
        most_frames: int | None = None,
    ) -> None:
        self._inside = inside.removeprefix("ipc://")
        self._most = most
        self._clients = clients
        self._unfinished = None if most_frames is None else Unfinished(most_frames, self._end_for)
        self._relays: dict[asyncio.Task[None], _End] = {}  # each with the end where the client is
        self._calm_s: float | None = None  # for how long there has been room; None: the log has not said otherwise
        self.address, self._listening = _listen(address, ipv6=ipv6)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="entrance", daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._relays)

    def stop_listening(self) -> None:
        """Let nobody in any more."""
        remove_socket(self.address)
        self._in_thread(self._stop_accepting)

    def close(self) -> None:
        """End, once the last messages of the zmq socket inside, which has been closed, have been relayed."""
        self._in_thread(lambda: self._loop.create_task(self._finish()))
        self._thread.join()

    def _in_thread(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(call)

    # ---- in the thread

    def _run(self) -> None:
        self._start_accepting()
        self._loop.run_forever()
        self._loop.close()

    def _start_accepting(self) -> None:
        if self._listening.fileno() >= 0:
            self._loop.add_reader(self._listening, self._accept)

    def _stop_accepting(self) -> None:
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening)
            self._listening.close()

    def _accept(self) -> None:
        """Let one in that waits, if there is room."""
        if len(self._relays) >= self._most:
            self._loop.remove_reader(self._listening)  # until one has ended
            self._tell_full()
            return
        inside = None
        try:
            inside = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            outside, _ = self._listening.accept()
        except OSError as error:
            if inside is not None:
                inside.close()
            if not isinstance(error, (BlockingIOError, ConnectionError)):  # no file is left, for whatever reason
                self._loop.remove_reader(self._listening)
                self._loop.call_later(_LOOK_S, self._start_accepting)
                self._tell_full(error=error.strerror)
            return
        outer, inner = _End(outside, self._loop), _End(inside, self._loop)
        if self._unfinished is not None:
            outer.follow = self._unfinished.begin(outer)
        outer.other, inner.other = inner, outer
        task = self._loop.create_task(self._relay(outer, inner))
        self._relays[task] = outer
        task.add_done_callback(self._ended)

    async def _relay(self, outer: _End, inner: _End) -> None:
        """Relay a connection until one of its ends has been lost."""
        try:
            _keep_alive(outer.connection)
            inner.connection.connect(self._inside)  # which zmq's thread accepts at once
            await inner.begin()
            await outer.begin()
            await asyncio.wait((outer.lost, inner.lost), return_when=asyncio.FIRST_COMPLETED)
            for end in (outer, inner):
                end.close()
            await asyncio.wait((outer.lost, inner.lost), timeout=_FAREWELL_S)
        except OSError:  # the front-end ends
            pass
        finally:
            for end in (outer, inner):
                end.abort()
            if self._unfinished is not None:
                self._unfinished.forget(outer)

    def _end_for(self, end: _End, reason: str) -> None:
        end.abort()
        log_event("rpc connection ended", level="warning", reason=reason, clients=self._clients)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._relays[task]
        self._start_accepting()

    async def _finish(self) -> None:
        self._stop_accepting()
        if self._relays:
            await asyncio.wait(self._relays, timeout=_FAREWELL_S)
        while self._relays:
            for task in self._relays:
                task.cancel()
            await asyncio.wait(self._relays)
            await asyncio.sleep(0)  # for what is called back when they are done
        self._loop.call_soon(self._loop.stop)  # after transports have closed their sockets

    # ---- when there is no room

    def _tell_full(self, **why: str | None) -> None:
        if self._calm_s is None:
            count = len(self._relays)
            log_event("rpc connections full", level="warning", connections=count, clients=self._clients, **why)
            for end in self._relays.values():
                end.silent_s = 0.0
            self._loop.call_later(_LOOK_S, self._look)
        self._calm_s = 0.0

    def _look(self) -> None:
        """End connections that are silent if another waits; say so when there has been room for a while.

        Silence is counted in looks: time in which this process did not run is nobody's.
        """
        assert self._calm_s is not None
        is_full = len(self._relays) >= self._most
        self._calm_s = 0.0 if is_full else self._calm_s + _LOOK_S
        if self._calm_s > _CALM_S:
            self._calm_s = None
            log_event("rpc connections not full", connections=len(self._relays), clients=self._clients)
            return
        somebody_waits = is_full and self._somebody_waits()
        for end in self._relays.values():
            end.silent_s += _LOOK_S
            if end.silent_s > SILENT_S and somebody_waits:
                end.abort()
        self._loop.call_later(_LOOK_S, self._look)

    def _somebody_waits(self) -> bool:
        if self._listening.fileno() < 0:
            return False
        waiting = select.poll()
        waiting.register(self._listening, select.POLLIN)
        return bool(waiting.poll(0))


class _End(asyncio.Protocol):
    """One end of a relay: what comes to it leaves at the other, and what the other cannot send yet holds it up.

    lost: done when its connection has ended. silent_s: seconds for which nothing has come, while they are counted.
    follow: hears what comes, and says whether it may pass.
    """

    other: _End

    def __init__(self, connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.connection, self._loop = connection, loop
        self.lost: asyncio.Future[None] = loop.create_future()
        self.silent_s = 0.0
        self.follow: Callable[[bytes], bool] | None = None
        self._transport: asyncio.Transport | None = None
        self._early = b""  # what came to the other before this one began

    async def begin(self) -> None:
        """Send and receive from now on."""
        self.connection.setblocking(False)
        await self._loop.connect_accepted_socket(lambda: self, self.connection)

    def close(self) -> None:
        """End it once all has been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End it now, if that has not happened: asyncio has let go of one that ended after its last bytes had left."""
        if self._transport is None:
            self.connection.close()
        elif not self.lost.done():
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._early)

    def data_received(self, data: bytes) -> None:
        self.silent_s = 0.0
        if self.follow is not None and not self.follow(data):
            return
        if self.other._transport is None:
            self.other._early += data
        else:
            self.other._transport.write(data)

    def pause_writing(self) -> None:
        if self.other._transport is not None:
            self.other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other._transport is not None:
            self.other._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


def _listen(address: str, *, ipv6: bool) -> tuple[str, socket.socket]:
    """Listen as zmq does, which knows more kinds of addresses. Returns the address with the port that was taken."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as scout:
        scout.set(zmq.BACKLOG, _BACKLOG)
        with scout.get_monitor_socket(zmq.EVENT_LISTENING) as monitor:
            address = bind(scout, address, ipv6=ipv6)
            listening = socket.socket(fileno=os.dup(recv_monitor_message(monitor)["value"]))
            scout.disable_monitor()
    listening.setblocking(False)
    return address, listening


def _keep_alive(connection: socket.socket) -> None:
    """Let the kernel end a connection whose other side has vanished: after a minute."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE:
            if hasattr(socket, name):
                with suppress(OSError):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
