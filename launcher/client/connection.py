"""A client's connection to a front-end: sends, hears, pings, and knows who waits for which reply.

Requests are sent again while nothing is heard of them, which is harmless, since the front-end knows them by their id;
a server that is silent for too long counts as lost, so that no call waits forever.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from engine.errors import ArgumentError, Krea2Error, ServerError, error_from_code
from launcher.messages import client_messages as messages
from launcher.messages.encoding import decode_reply, encode_request
from launcher.messages.keys import ClientKeys
from launcher.messages.limits import is_number
from launcher.messages.sockets import send_now

PING_S = 2.0  # between pings, which keep the lease
ASK_AGAIN_S = 10.0  # without a reply to a request
SILENCE_S = 20.0  # without anything from the server
_FAREWELL_MS = 200  # for the last cancels to leave
_KEYS_HINT = " (a server with keys answers only clients with a key that it knows)"


@dataclass
class Call:
    """A request for images that is under way, and its replies that nobody has read yet: the newest of each kind."""

    frame: bytes
    last_heard: float
    _unread: dict[Hashable, tuple[messages.Reply, bytes] | Krea2Error] = field(default_factory=dict)
    _has_unread: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, kind: Hashable, reply: tuple[messages.Reply, bytes] | Krea2Error) -> None:
        """Keep a reply with its binary frame, or the error that ends the call, in place of an older one of its kind."""
        self._unread[kind] = reply
        self._has_unread.set()

    async def next_reply(self) -> tuple[messages.Reply, bytes]:
        """Wait for a reply. Raises the error that ends the call."""
        await self._has_unread.wait()
        reply = self._unread.pop(next(iter(self._unread)))
        if not self._unread:
            self._has_unread.clear()
        if isinstance(reply, Krea2Error):
            raise reply.with_traceback(None)  # which each raise would add to
        return reply


class Connection:
    """A ZMQ socket to a front-end, which knows this client by the socket's name, and who waits for its replies."""

    def __init__(
        self, address: str, *, connect_timeout_s: float = 10.0, key: str | os.PathLike[str] | None = None
    ) -> None:
        if not isinstance(address, str) or not address:
            raise ArgumentError.of("address", "tcp://HOST:PORT or ipc:///PATH", address)
        if not is_number(connect_timeout_s) or not connect_timeout_s > 0:
            raise ArgumentError.of("connect_timeout_s", "above 0", connect_timeout_s)
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        self._keys = None if key is None else ClientKeys.load(key)
        self._context: zmq.asyncio.Context | None = None
        self._calls: dict[str, Call] = {}  # by the request's id
        # What each question waits for: a reply with its own id, or, where it has none, of a type.
        self._questions: dict[asyncio.Future[Any], Hashable] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._last_heard = 0.0
        self._lost: Krea2Error | None = None  # why calls fail, until the server is heard again
        self._ended = False

    async def connect(self) -> None:
        """Find out whether a server answers; does nothing the second time."""
        if self._ended:
            raise ServerError("the client was closed")
        if self._context is not None:
            return
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        # A name of its own, so that a lost connection comes back as the same client; a leading zero is zmq's to use.
        self._socket.routing_id = b"client-" + uuid.uuid4().bytes
        self._socket.set(zmq.LINGER, _FAREWELL_MS)
        self._socket.set(zmq.IPV6, int("[" in self.address))
        if self._keys is not None:
            self._keys.use(self._socket)
        try:
            self._socket.connect(self.address)
            self._last_heard = time.monotonic()
            self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._keep_lease())]
            await self._ask(messages.Ping(), messages.Pong, self._connect_timeout_s, hint=_KEYS_HINT)
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
        for request_id in self._calls:
            self._send(messages.Cancel(request_id=request_id))
        self._ended = True
        self.server_ended(ServerError("the client was closed"))
        for task in self._tasks:
            task.cancel()
        if self._context is not None:
            self._context.destroy()

    def server_ended(self, error: Krea2Error) -> None:
        """Fail everything that waits, and what is asked from now on until the server is heard again."""
        self._lost = error
        for call in self._calls.values():
            call.put("end", error)
        self._settle(None, error)

    async def _begin_call(self, request: messages.Generate) -> Call:
        """Send a request, and expect replies until `_end_call`, which must follow.

        Raises `ArgumentError` for values that cannot be sent, and for an id that is none or is in use.
        """
        frame = encode_request(request)
        await self._ready()
        request_id = request.request_id
        if not messages.is_request_id(request_id):
            raise ArgumentError.of("request_id", "a string of 1 to 64 characters", request_id)
        if request_id in self._calls:
            raise ArgumentError(f"request_id {request_id!r} is in use", parameter="request_id")
        call = self._calls[request_id] = Call(frame, time.monotonic())
        self._send_frame(frame)
        return call

    def _end_call(self, request_id: str, *, cancel: bool) -> None:
        """Expect no more replies to a request, and tell the server so. cancel: it has not ended there."""
        del self._calls[request_id]
        if cancel:
            self._send(messages.Cancel(request_id=request_id))
        self._send(messages.Acknowledge(request_id=request_id))

    async def _ask(
        self, question: messages.Request, reply: type[messages.Reply], timeout_s: float = SILENCE_S, hint: str = ""
    ) -> Any:
        """Ask for a reply of this type. Returns it, or its binary frame where it has one.

        Raises the error that comes instead, and `ServerError` with `hint` if nothing comes within `timeout_s` seconds.
        """
        await self._ready()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._questions[future] = getattr(question, "request_id", reply)
        try:
            self._send(question)
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise ServerError(f"no server answers at {self.address}{hint}") from None
        finally:
            del self._questions[future]

    async def _ready(self) -> None:
        await self.connect()
        if self._lost is not None:
            raise self._lost.with_traceback(None)

    def _send(self, message: messages.Request) -> None:
        """Send a message, if the connection is open, and wait for no reply."""
        self._send_frame(encode_request(message))

    def _send_frame(self, frame: bytes) -> None:
        if self._context is not None and not self._ended:
            send_now(self._socket, [frame])  # which fails only when nobody has listened for long

    async def _receive(self) -> None:
        while True:
            header, *frames = await self._socket.recv_multipart()
            self._last_heard = time.monotonic()
            self._lost = None
            try:
                self._handle(decode_reply(header), frames[0] if frames else b"")
            except msgspec.DecodeError:
                self.server_ended(ServerError(f"the server at {self.address} speaks another protocol version"))
            await asyncio.sleep(0)

    def _handle(self, reply: messages.Reply, file: bytes) -> None:
        if isinstance(reply, messages.Closing):
            self.server_ended(error_from_code(reply.code, reply.message))
            return
        key: Any = getattr(reply, "request_id", type(reply))  # None for a question that the server did not understand
        error = None
        if isinstance(reply, messages.Failed):
            error = error_from_code(reply.code, reply.message, reply.parameter, reply.retry_after_s)
        if (call := self._calls.get(key)) is None:
            self._settle(key, error or file or reply)
            return
        call.last_heard = self._last_heard
        call.put("end" if error else (type(reply), getattr(reply, "index", None)), error or (reply, file))

    def _settle(self, key: Hashable, outcome: object) -> None:
        """Give the questions that wait for `key`, or all for None, a reply or the error that they raise."""
        for future, expected in self._questions.items():
            if key in (None, expected) and not future.done():
                if isinstance(outcome, Krea2Error):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            self._send(messages.Ping())
            now = time.monotonic()
            if now - self._last_heard > SILENCE_S and self._lost is None:
                self.server_ended(ServerError(f"the server at {self.address} has been silent for {SILENCE_S:g} s"))
            for call in self._calls.values():
                if now - call.last_heard > ASK_AGAIN_S:
                    call.last_heard = now
                    self._send_frame(call.frame)
