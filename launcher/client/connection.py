"""A client's connection to a front-end: sends, receives, pings, and knows who waits for which reply.

Requests are sent again while nothing is heard of them, which is harmless, since the front-end knows them by their id;
a server that is silent for too long counts as lost, so that no call waits forever. Files may be on their way for long,
and what is sent after them waits behind them, pings too. How long is told by a clock that stands still while this
process does, or its event loop: what came meanwhile is heard only afterwards.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
import uuid
import weakref
from collections import deque
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from engine.errors import ArgumentError, Krea2Error, ServerError, error_from_code
from launcher.awake import TICK_S, AwakeClock
from launcher.messages import client_messages as messages
from launcher.messages.connections.open_files import check_free
from launcher.messages.connections.sockets import check_address_of_server, send_now
from launcher.messages.encoding import decode_reply, encode_request
from launcher.messages.keys import ClientKeys
from launcher.messages.limits import is_number

PING_S = 2.0  # between pings, which keep the lease
ASK_AGAIN_S = 10.0  # without a reply to a request
SILENCE_S = 30.0  # without anything from the server, which may have been stopped for a while as a whole
OWN_SILENCE_S = 120.0  # for a process of the server's own, which ends with it
ANSWER_S = 20.0  # to a question
_SLOWEST = 128 * 1024  # bytes of files a second, on their way to the server
_FAREWELL_MS = 200  # for the last cancels to leave
_FILES = 16  # that a context and its socket open, and some
_HINT = (
    " (krea2 serve prints its address after `rpc:`; a server with keys answers only clients with a key that it knows)"
)


@dataclass(eq=False)
class Call:
    """What was asked and has not ended, and its replies that nobody has read yet: the newest of each kind.

    key: what its replies have: the request's id, or, where they have none, their type. frame: to be sent again while
    nothing is heard; None for a question, which is asked once, and whose answer is due by a time, or else `late` ends
    it. files: what follows the frame, until the server has it; sent: when. Times are the connection's.
    """

    key: Any
    frame: bytes | None
    last_heard: float
    due: float = math.inf
    late: Krea2Error | None = None
    files: tuple[bytes, ...] = ()
    sent: float = 0.0
    _unread: dict[Hashable, tuple[messages.Reply, bytes] | Krea2Error] = field(default_factory=dict)
    _has_unread: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, kind: Hashable, reply: tuple[messages.Reply, bytes] | Krea2Error) -> None:
        """Keep a reply with its binary frame, or the error that ends the call, in place of an older one of its kind."""
        self._unread[kind] = reply
        self._has_unread.set()

    async def next_reply(self) -> tuple[messages.Reply, bytes]:
        """Wait for a reply and return the oldest unread. Raises the error that ends the call."""
        await self._has_unread.wait()
        reply = self._unread.pop(next(iter(self._unread)))
        if not self._unread:
            self._has_unread.clear()
        if isinstance(reply, Krea2Error):
            raise reply.with_traceback(None)  # which each raise would add to
        return reply


class Connection:
    """A ZMQ socket to a front-end, and who waits for its replies. Raises `ArgumentError` for a bad argument.

    name: what the front-end is to know this process of its own by, None for any other client. It has more attributes
    than other classes: six are how to connect, the others are the socket and who waits at it.
    """

    def __init__(
        self,
        address: str,
        *,
        connect_timeout_s: float = 10.0,
        key: str | os.PathLike[str] | None = None,
        name: bytes | None = None,
    ) -> None:
        check_address_of_server(address)
        if not is_number(connect_timeout_s) or not connect_timeout_s > 0:
            raise ArgumentError.of("connect_timeout_s", "above 0", connect_timeout_s)
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        # So that a lost connection comes back as the same client; a leading zero is zmq's to use.
        self._name = b"client-" + uuid.uuid4().bytes if name is None else name
        self._is_own = name is not None
        self._keys = None if key is None else ClientKeys.load(key)
        self._context: zmq.asyncio.Context | None = None
        self._calls: list[Call] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._clock = AwakeClock()
        self._last_heard = 0.0
        self._pings: deque[float] = deque()  # when those were sent that are not answered
        self._arrived = 0.0  # what was sent before then has arrived: it comes in order
        self._lost: Krea2Error | None = None  # why calls fail, until the server is heard again
        self._ended = False

    async def connect(self) -> None:
        """Find out whether a server answers, once. Raises `ServerError` if not, `ArgumentError` for a bad address."""
        if self._ended:
            raise ServerError("the client was closed")
        if self._context is not None:
            return
        check_free(_FILES, f"cannot connect to {self.address}")
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.routing_id = self._name
        self._socket.set(zmq.LINGER, _FAREWELL_MS)
        self._socket.set(zmq.IPV6, int("[" in self.address))
        if self._keys is not None:
            self._keys.use(self._socket)
        try:
            self._socket.connect(self.address)
            self._last_heard = self._clock()
            known = weakref.ref(self)  # one that nobody else refers to disconnects
            self._tasks = [asyncio.create_task(work) for work in (_receive(known, self._socket), _keep_lease(known))]
            weakref.finalize(self, _disconnect, asyncio.get_running_loop(), self._context, self._tasks).atexit = False
            await self._ask(messages.Ping(), messages.Pong, self._connect_timeout_s, hint=_HINT)
        except BaseException as error:  # a context that is abandoned, by cancelling this, blocks when it is collected
            await self.close()
            if isinstance(error, zmq.ZMQError):
                problem = f"cannot connect to {self.address!r}: {zmq.strerror(error.errno or 0)}"
                raise ArgumentError(problem, parameter="address") from None
            raise

    async def close(self) -> None:
        """Cancel what is waiting and disconnect."""
        if self._ended:
            return
        for call in self._calls:
            if call.frame is not None:
                self._send(messages.Cancel(request_id=call.key))
        self._ended = True
        self.server_ended(ServerError("the client was closed"))
        for task in self._tasks:
            task.cancel()
        if self._context is not None:
            self._context.destroy()

    def server_ended(self, error: Krea2Error) -> None:
        """Fail everything that waits, and what is asked from now on until the server is heard again."""
        self._lost = error
        self._pings.clear()
        for call in self._calls:
            call.put("end", error)

    async def _begin_call(self, request: messages.Generate, files: Sequence[bytes] = ()) -> Call:
        """Send a request with the files of its pictures, and expect replies until `_end_call`, which must follow.

        Raises `ArgumentError` for values that cannot be sent, and for an id that is none or is in use.
        """
        frame = encode_request(request)
        await self._ready()
        request_id = request.request_id
        if not messages.is_request_id(request_id):
            raise ArgumentError.of("request_id", "a string of 1 to 64 characters", request_id)
        if any(call.key == request_id for call in self._calls):
            raise ArgumentError(f"request_id {request_id!r} is in use", parameter="request_id")
        if not any(call.files for call in self._calls):
            self._pings.clear()  # some may have been lost with a connection
        now = self._clock()
        call = Call(request_id, frame, now, files=(*files,), sent=now)
        self._calls.append(call)
        self._send_frames(frame, *files)
        return call

    def _end_call(self, call: Call, *, cancel: bool) -> None:
        """Expect no more replies to a request, and tell the server so. cancel: it has not ended there."""
        self._calls.remove(call)
        if cancel:
            self._send(messages.Cancel(request_id=call.key))
        self._send(messages.Acknowledge(request_id=call.key))

    async def _ask(
        self, question: messages.Request, reply: type[messages.Reply], timeout_s: float = ANSWER_S, hint: str = ""
    ) -> Any:
        """Ask for a reply of this type. Returns it, or its binary frame where it has one.

        Raises the error that comes instead, and `ServerError` with `hint` if nothing comes within `timeout_s` seconds.
        """
        await self._ready()
        now = self._clock()
        late = ServerError(f"no server answers at {self.address}{hint}")
        call = Call(getattr(question, "request_id", reply), None, now, due=now + timeout_s, late=late)
        self._calls.append(call)
        try:
            self._send(question)
            answer, file = await call.next_reply()
            return file or answer
        finally:
            self._calls.remove(call)

    async def _ready(self) -> None:
        await self.connect()
        if self._lost is not None:
            raise self._lost.with_traceback(None)

    def _send(self, message: messages.Request) -> None:
        """Send a message, if the connection is open, and wait for no reply."""
        if isinstance(message, messages.Ping) and self._lost is None:
            self._pings.append(self._clock())
        self._send_frames(encode_request(message))

    def _send_frames(self, *frames: bytes) -> None:
        if self._context is not None and not self._ended:
            send_now(self._socket, [*frames])  # which fails only when nobody has listened for long

    def _take(self, header: bytes, *frames: bytes) -> None:
        self._last_heard, self._lost = self._clock(), None
        try:
            self._handle(decode_reply(header), frames[0] if frames else b"")
        except msgspec.DecodeError:
            self.server_ended(ServerError(f"the server at {self.address} speaks another protocol version"))

    def _handle(self, reply: messages.Reply, file: bytes) -> None:
        if isinstance(reply, messages.Closing):
            self.server_ended(error_from_code(reply.code, reply.message))
            return
        if isinstance(reply, messages.Pong) and self._pings:
            self._arrived = self._pings.popleft()
        key = getattr(reply, "request_id", type(reply))  # None for a question that the server did not understand
        kind: Hashable = (type(reply), getattr(reply, "index", None))
        outcome: tuple[messages.Reply, bytes] | Krea2Error = (reply, file)
        if isinstance(reply, messages.Failed):
            kind, outcome = "end", self._error_of(reply)
        for call in self._calls:
            if call.key == key or (key is None and call.frame is None):
                call.last_heard, call.files = self._last_heard, ()  # it has been taken, or refused
                call.put(kind, outcome)

    def _error_of(self, failed: messages.Failed) -> Krea2Error:
        return error_from_code(failed.code, failed.message, failed.parameter, failed.retry_after_s, failed.category)

    def _tend(self, *, ping: bool) -> None:
        now = self._clock()
        if ping:
            self._send(messages.Ping())
        on_way = [call for call in self._calls if call.files and self._arrived <= call.sent]
        silence_s = OWN_SILENCE_S if self._is_own else SILENCE_S
        silence_s += sum(len(file) for call in on_way for file in call.files) // _SLOWEST
        if now - self._last_heard > silence_s and self._lost is None:
            self.server_ended(ServerError(f"the server at {self.address} has been silent for {silence_s:g} s"))
        for call in self._calls:
            if call.late is not None and now >= call.due:
                call.put("end", call.late)
            if call in on_way:
                call.last_heard = now  # nothing could come yet
            elif call.frame is not None and now - call.last_heard > ASK_AGAIN_S:
                call.last_heard = call.sent = now
                self._send_frames(call.frame, *call.files)


async def _receive(known: weakref.ref[Connection], socket: zmq.asyncio.Socket) -> None:
    while True:
        frames = await socket.recv_multipart()
        if (connection := known()) is None:
            return
        connection._take(*frames)
        del connection, frames
        await asyncio.sleep(0)


async def _keep_lease(known: weakref.ref[Connection]) -> None:
    pinged = time.monotonic()  # the server's clock goes on while this process stands still
    while True:
        await asyncio.sleep(min(TICK_S, PING_S))
        really = time.monotonic()
        if (connection := known()) is None:
            return
        connection._tend(ping=really - pinged >= PING_S)
        pinged = really if really - pinged >= PING_S else pinged
        del connection


def _disconnect(loop: asyncio.AbstractEventLoop, context: zmq.asyncio.Context, tasks: list[asyncio.Task[None]]) -> None:
    """Close the socket of a connection that is forgotten, or closed already, in its loop: sockets are no threads'."""
    with suppress(RuntimeError):  # the loop is closed, and what it ran was cancelled
        for task in tasks:
            loop.call_soon_threadsafe(task.cancel)
        loop.call_soon_threadsafe(context.destroy)
