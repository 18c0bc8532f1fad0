"""A client of a front-end, for asyncio.

Requests are sent again while nothing is heard of them, which is harmless, since the front-end knows them by their id;
a server that is silent for too long counts as lost, so no call waits for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar, Unpack

import msgspec
import zmq
import zmq.asyncio

from engine.errors import ArgumentError, Krea2Error, ServerError, error_from_code
from launcher.client.calls import Call, error_of
from launcher.client.parameters import Parameters, make_request
from launcher.client.results import Event, ImageFile, PreviewFile, Result
from launcher.messages.client_messages import (
    Accepted,
    Acknowledge,
    Cancel,
    Closing,
    Failed,
    Generate,
    Image,
    ListLoras,
    LoadLora,
    LoraRequest,
    Loras,
    Metrics,
    MetricsReply,
    Ping,
    Pong,
    Preview,
    Progress,
    Reply,
    Request,
    Status,
    StatusReply,
    UnloadLora,
    decode_reply,
    encode_request,
)
from launcher.messages.keys import ClientKeys
from launcher.messages.limits import is_number
from launcher.messages.sockets import send_now

PING_S = 2.0
ASK_AGAIN_S = 10.0  # without news of a request
SILENCE_S = 20.0  # without anything from the server
LOAD_LORA_S = 300.0  # for a LoRA to be read, and for the ranks to get to it
_FAREWELL_MS = 200  # for the last cancels to leave
_KEYS_HINT = " (a server with keys answers only clients with a key that it knows)"

T = TypeVar("T")


class AsyncClient:
    """A client inside an event loop, which must not be blocked for longer than the server's lease of 20 s.

    Connects when first used, or in `async with`. Every method raises `ServerError` if the server does not answer, and
    `ArgumentError` if nothing can be connected to such an address. `key`: this client's `.key_secret` file, for a
    server with keys.
    """

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
        self._calls: dict[str, Call] = {}
        self._answers: dict[type[Reply], list[asyncio.Future[Any]]] = {Pong: [], StatusReply: [], MetricsReply: []}
        self._lora_answers: dict[str, asyncio.Future[Loras]] = {}  # by the id of the question
        self._tasks: list[asyncio.Task[None]] = []
        self._last_heard = 0.0
        self._lost: Krea2Error | None = None  # why calls fail, until the server is heard again
        self._ended = False

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def generate(self, prompt: str, **parameters: Unpack[Parameters]) -> Result:
        """Make images and wait for them. Cancelling this call cancels the request.

        Parameters that are not given are the checkpoint's and the server's defaults, a random seed among them. Raises
        the errors of `engine.errors`: `ArgumentError` for a bad parameter, `QueueFullError`, `RequestTimeoutError`
        after `timeout_s` seconds, `CancelledError`, and `RankError` if the engine failed.
        """
        async for event in self.stream(prompt, **parameters):
            if isinstance(event, Result):
                return event
        raise AssertionError("a stream ends with its result")

    def stream(self, prompt: str, **parameters: Unpack[Parameters]) -> AsyncIterator[Event]:
        """Make images and follow them: `Accepted`, `Progress`, an `ImageFile` each, and at last the `Result`.

        With `preview_every`, a `PreviewFile` of every image after so many of its steps. Not every progress and preview
        need come: a client that is slow to read gets the newest.

        Raises what `generate` raises. Closing the iterator cancels the request.
        """
        parameters.setdefault("request_id", uuid.uuid4().hex)
        return self.follow(make_request(prompt, parameters))

    async def follow(self, request: Generate) -> AsyncGenerator[Event, None]:
        """`stream`, for a request that has been put together already."""
        frame = encode_request(request)
        await self.connect()
        if self._lost is not None:
            raise self._lost.with_traceback(None)  # which each raise would add to
        if not isinstance(request.request_id, str) or not 1 <= len(request.request_id) <= 64:
            raise ArgumentError.of("request_id", "a string of 1 to 64 characters", request.request_id)
        if request.request_id in self._calls:
            raise ArgumentError(f"request_id {request.request_id!r} is in use", parameter="request_id")
        call = self._calls[request.request_id] = Call(frame, time.monotonic())
        images: dict[int, ImageFile] = {}
        ended = False
        try:
            self._send_frame(frame)
            while not ended:
                reply = await call.next_news()
                if isinstance(reply, Krea2Error):
                    raise reply.with_traceback(None)
                if isinstance(reply, Accepted | Progress):
                    yield reply
                    continue
                news, file = reply
                if isinstance(news, Preview):
                    yield PreviewFile.of(news, file)
                    continue
                header = news
                if header.index not in images:  # it may have been sent again
                    images[header.index] = ImageFile.of(header, file)
                    ended = len(images) == header.num_images
                    yield images[header.index]
        finally:
            del self._calls[request.request_id]
            if not ended:
                self._send(Cancel(request_id=request.request_id))
            self._send(Acknowledge(request_id=request.request_id))
        yield Result.of(header, [images[index] for index in sorted(images)])

    async def cancel(self, request_id: str) -> None:
        """Cancel a request of this client: its call raises `CancelledError`. Harmless for one that has ended."""
        await self.connect()
        self._send(Cancel(request_id=request_id))

    async def load_lora(self, name: str, path: str | None = None, strength: float = 1.0) -> Loras:
        """Load a LoRA file, by its path in the server's `--lora-dir`, for requests to choose by `name`.

        path: None if it is the name itself, as of the demos' "demo-outlined", which lies in no such folder. strength:
        of requests that name none. Returns what is loaded then. Raises `ArgumentError` if the server allows
        no such file or name, and `LoraError` if the file does not fit the model, or into the ranks' memory.
        """
        question = LoadLora(
            request_id=uuid.uuid4().hex, name=name, path=name if path is None else path, strength=strength
        )
        return await self._ask_about_loras(question, LOAD_LORA_S)

    async def unload_lora(self, name: str) -> Loras:
        """Let requests choose this LoRA no more; those that have are finished with it. Returns what is left.

        Raises `ArgumentError` if there is none of that name, or if the server has no `--lora-dir`.
        """
        return await self._ask_about_loras(UnloadLora(request_id=uuid.uuid4().hex, name=name), SILENCE_S)

    async def loras(self) -> Loras:
        """The LoRAs that requests may choose, and those that are part of the weights."""
        return await self._ask_about_loras(ListLoras(request_id=uuid.uuid4().hex), SILENCE_S)

    async def status(self) -> StatusReply:
        """What the server is doing."""
        return await self._ask(Status(), StatusReply, SILENCE_S)

    async def metrics(self) -> bytes:
        """The server's metrics in Prometheus' text format."""
        return await self._ask(Metrics(), MetricsReply, SILENCE_S)

    async def ping(self) -> float:
        """Seconds to the server and back."""
        began = time.monotonic()
        await self._ask(Ping(), Pong, SILENCE_S)
        return time.monotonic() - began

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
        except zmq.ZMQError as error:
            await self.close()
            raise ArgumentError(
                f"cannot connect to {self.address!r}: {zmq.strerror(error.errno or 0)}", parameter="address"
            ) from None
        self._last_heard = time.monotonic()
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._keep_lease())]
        try:
            await self._ask(Ping(), Pong, self._connect_timeout_s, hint=_KEYS_HINT)
        except BaseException:  # a context that is abandoned, by cancelling this, blocks when it is collected
            await self.close()
            raise

    async def close(self) -> None:
        """Cancel what is waiting and disconnect."""
        if self._ended:
            return
        for request_id in self._calls:
            self._send(Cancel(request_id=request_id))
        self._ended = True
        self._lose(ServerError("the client was closed"))
        for task in self._tasks:
            task.cancel()
        if self._context is not None:
            self._context.destroy()

    def server_ended(self, error: Krea2Error) -> None:
        """Somebody knows that the server is gone, and why."""
        self._lose(error)

    # ---- the connection

    async def _ask(self, question: Request, answer: type[Reply], timeout_s: float, hint: str = "") -> Any:
        await self.connect()
        if self._lost is not None:
            raise self._lost.with_traceback(None)  # which each raise would add to
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting = self._answers[answer]
        waiting.append(future)
        try:
            return await self._answer_to(question, future, timeout_s, hint)
        finally:
            waiting.remove(future)

    async def _ask_about_loras(self, question: LoraRequest, timeout_s: float) -> Loras:
        await self.connect()
        if self._lost is not None:
            raise self._lost.with_traceback(None)
        future: asyncio.Future[Loras] = asyncio.get_running_loop().create_future()
        self._lora_answers[question.request_id] = future
        try:
            return await self._answer_to(question, future, timeout_s)
        finally:
            del self._lora_answers[question.request_id]

    async def _answer_to(self, question: Request, future: asyncio.Future[T], timeout_s: float, hint: str = "") -> T:
        self._send(question)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise ServerError(f"no server answers at {self.address}{hint}") from None

    def _send(self, message: Request) -> None:
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
                reply = decode_reply(header)
            except msgspec.DecodeError:
                self._lose(ServerError(f"the server at {self.address} speaks another protocol version"))
            else:
                self._handle(reply, frames)
            await asyncio.sleep(0)

    def _handle(self, reply: Reply, frames: list[bytes]) -> None:
        if isinstance(reply, Pong | StatusReply | MetricsReply):
            for future in self._answers[type(reply)]:
                if not future.done():
                    future.set_result(frames[0] if isinstance(reply, MetricsReply) else reply)
        elif isinstance(reply, Closing):
            self._lose(error_from_code(reply.code, reply.message))
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

    def _lose(self, error: Krea2Error) -> None:
        self._lost = error
        for call in self._calls.values():
            call.tell("end", error)
        self._fail_questions(error)

    def _fail_questions(self, error: Krea2Error) -> None:
        for future in itertools.chain(*self._answers.values(), self._lora_answers.values()):
            if not future.done():
                future.set_exception(error)

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            self._send(Ping())
            now = time.monotonic()
            if now - self._last_heard > SILENCE_S and self._lost is None:
                self._lose(ServerError(f"the server at {self.address} has been silent for {SILENCE_S:g} s"))
            for call in self._calls.values():
                if now - call.last_heard > ASK_AGAIN_S:
                    call.last_heard = now
                    self._send_frame(call.frame)
