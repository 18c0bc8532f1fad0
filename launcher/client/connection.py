"""A client's connection to a front-end: sends, hears, pings, and knows who waits for which answer.

Requests are sent again while nothing is heard of them, which is harmless, since the front-end knows them by their id;
a server that is silent for too long counts as lost, so no call waits for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from typing import Any, TypeVar

import msgspec
import zmq
import zmq.asyncio

from engine.errors import ArgumentError, Krea2Error, ServerError, error_from_code
from launcher.client.calls import Call, error_of
from launcher.messages.client_messages import (
    Accepted,
    Acknowledge,
    Cancel,
    Closing,
    Failed,
    Image,
    LoraRequest,
    Loras,
    MetricsReply,
    Ping,
    Pong,
    Preview,
    Progress,
    Reply,
    Request,
    StatusReply,
)
from launcher.messages.encoding import decode_reply, encode_request
from launcher.messages.keys import ClientKeys
from launcher.messages.sockets import send_now

PING_S = 2.0
ASK_AGAIN_S = 10.0  # without news of a request
SILENCE_S = 20.0  # without anything from the server
_FAREWELL_MS = 200  # for the last cancels to leave
_KEYS_HINT = " (a server with keys answers only clients with a key that it knows)"

T = TypeVar("T")


class Connection:
    """A ZMQ socket to a front-end, which knows this client by the socket's name, and the calls that wait on it.

    Opens when first used. Calls raise `ServerError` if the server does not answer. `keys`: for a server with keys.
    """

    def __init__(self, address: str, *, connect_timeout_s: float, keys: ClientKeys | None) -> None:
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        self._keys = keys
        self._context: zmq.asyncio.Context | None = None
        self._calls: dict[str, Call] = {}
        self._answers: dict[type[Reply], list[asyncio.Future[Any]]] = {Pong: [], StatusReply: [], MetricsReply: []}
        self._lora_answers: dict[str, asyncio.Future[Loras]] = {}  # by the id of the question
        self._tasks: list[asyncio.Task[None]] = []
        self._last_heard = 0.0
        self._lost: Krea2Error | None = None  # why calls fail, until the server is heard again
        self._ended = False

    async def open(self) -> None:
        """Find out whether a server answers; does nothing the second time.

        Raises `ServerError`, and `ArgumentError` if nothing can be connected to such an address.
        """
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
        except zmq.ZMQError as error:
            self.close()
            raise ArgumentError(
                f"cannot connect to {self.address!r}: {zmq.strerror(error.errno or 0)}", parameter="address"
            ) from None
        self._last_heard = time.monotonic()
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._keep_lease())]
        try:
            await self.ask(Ping(), Pong, self._connect_timeout_s, hint=_KEYS_HINT)
        except BaseException:  # a context that is abandoned, by cancelling this, blocks when it is collected
            self.close()
            raise

    def close(self) -> None:
        """Cancel what is waiting and disconnect."""
        if self._ended:
            return
        for request_id in self._calls:
            self.send(Cancel(request_id=request_id))
        self._ended = True
        self.lose(ServerError("the client was closed"))
        for task in self._tasks:
            task.cancel()
        if self._context is not None:
            self._context.destroy()

    def lose(self, error: Krea2Error) -> None:
        """Fail everything that waits, and what is asked from now on until the server is heard again."""
        self._lost = error
        for call in self._calls.values():
            call.tell("end", error)
        self._fail_questions(error)

    def send(self, message: Request) -> None:
        """Send a message, if the connection is open, and wait for no answer."""
        self.send_frame(encode_request(message))

    def send_frame(self, frame: bytes) -> None:
        """`send` of an encoded message."""
        if self._context is not None and not self._ended:
            send_now(self._socket, [frame])  # which fails only when nobody has listened for long

    async def begin_call(self, request_id: str, frame: bytes) -> Call:
        """Expect news of a request, whose `frame` is for the caller to send first. Raises `ArgumentError` for its id.

        `end_call` must follow.
        """
        await self.open()
        self._raise_if_lost()
        if not isinstance(request_id, str) or not 1 <= len(request_id) <= 64:
            raise ArgumentError.of("request_id", "a string of 1 to 64 characters", request_id)
        if request_id in self._calls:
            raise ArgumentError(f"request_id {request_id!r} is in use", parameter="request_id")
        call = self._calls[request_id] = Call(frame, time.monotonic())
        return call

    def end_call(self, request_id: str, *, cancel: bool) -> None:
        """Expect no more news of a request, and tell the server so. cancel: it has not ended there."""
        del self._calls[request_id]
        if cancel:
            self.send(Cancel(request_id=request_id))
        self.send(Acknowledge(request_id=request_id))

    async def ask(self, question: Request, answer: type[Reply], timeout_s: float, hint: str = "") -> Any:
        """The answer to a question, or for `MetricsReply` its binary frame. hint: what to say if none comes."""
        await self.open()
        self._raise_if_lost()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting = self._answers[answer]
        waiting.append(future)
        try:
            return await self._answer_to(question, future, timeout_s, hint)
        finally:
            waiting.remove(future)

    async def ask_about_loras(self, question: LoraRequest, timeout_s: float) -> Loras:
        """The answer to a question about LoRAs, each of which has an id. Raises the error that the server answers."""
        await self.open()
        self._raise_if_lost()
        future: asyncio.Future[Loras] = asyncio.get_running_loop().create_future()
        self._lora_answers[question.request_id] = future
        try:
            return await self._answer_to(question, future, timeout_s)
        finally:
            del self._lora_answers[question.request_id]

    async def _answer_to(self, question: Request, future: asyncio.Future[T], timeout_s: float, hint: str = "") -> T:
        self.send(question)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise ServerError(f"no server answers at {self.address}{hint}") from None

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise self._lost.with_traceback(None)  # which each raise would add to

    async def _receive(self) -> None:
        while True:
            header, *frames = await self._socket.recv_multipart()
            self._last_heard = time.monotonic()
            self._lost = None
            try:
                reply = decode_reply(header)
            except msgspec.DecodeError:
                self.lose(ServerError(f"the server at {self.address} speaks another protocol version"))
            else:
                self._handle(reply, frames)
            await asyncio.sleep(0)

    def _handle(self, reply: Reply, frames: list[bytes]) -> None:
        if isinstance(reply, Pong | StatusReply | MetricsReply):
            for future in self._answers[type(reply)]:
                if not future.done():
                    future.set_result(frames[0] if isinstance(reply, MetricsReply) else reply)
        elif isinstance(reply, Closing):
            self.lose(error_from_code(reply.code, reply.message))
        elif reply.request_id is None:  # a question that the server did not understand
            self._fail_questions(error_of(reply))
        elif (answer := self._lora_answers.get(reply.request_id)) is not None:
            if isinstance(reply, Loras) and not answer.done():
                answer.set_result(reply)
            elif isinstance(reply, Failed) and not answer.done():
                answer.set_exception(error_of(reply))
        elif (call := self._calls.get(reply.request_id)) is not None:
            call.last_heard = self._last_heard
            if isinstance(reply, Failed):
                call.tell("end", error_of(reply))
            elif isinstance(reply, Image | Preview):
                call.tell((type(reply), reply.index), (reply, frames[0]))
            elif isinstance(reply, Accepted | Progress):
                call.tell(type(reply), reply)

    def _fail_questions(self, error: Krea2Error) -> None:
        for future in itertools.chain(*self._answers.values(), self._lora_answers.values()):
            if not future.done():
                future.set_exception(error)

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            self.send(Ping())
            now = time.monotonic()
            if now - self._last_heard > SILENCE_S and self._lost is None:
                self.lose(ServerError(f"the server at {self.address} has been silent for {SILENCE_S:g} s"))
            for call in self._calls.values():
                if now - call.last_heard > ASK_AGAIN_S:
                    call.last_heard = now
                    self.send_frame(call.frame)
