"""A client of a front-end, for code without an event loop, or with one of its own."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import closing, suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

from engine.errors import ServerError
from launcher.client import loop_thread
from launcher.client.async_client import AsyncClient
from launcher.client.bars import is_watched
from launcher.client.loop_thread import LoopThread, close_forgotten
from launcher.client.parameters import LikeNoPipeline, Parameters, documented, make_request
from launcher.client.results import Event, Result
from launcher.client.watching import Callback, Watching, check_callback

P = ParamSpec("P")
T = TypeVar("T")


def _in_thread(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    """Make the same method of `Client`, which runs this one in the client's thread and waits for it."""

    @wraps(method)
    def call(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client.run(method(client.asynchronous, *args, **kwargs))

    return call


class Client(LikeNoPipeline):
    """A client for code without an event loop, or with one of its own. Thread-safe.

    It runs an `AsyncClient`, `asynchronous`, in a thread, and its methods wait for those of the same name. Ctrl-C in
    `generate`, or leaving the loop over the events of `stream`, cancels the request. Leaving a `with` block closes it,
    and so does forgetting it.

    Raises `ServerError` if no server answers at `address` within `connect_timeout_s` seconds; with `connect` False,
    only when it is first used. `key`: this client's `.key_secret` file, for a server with keys. `name`: by which a
    front-end knows the process that started it.
    """

    def __init__(
        self,
        address: str,
        *,
        connect_timeout_s: float = 10.0,
        key: str | os.PathLike[str] | None = None,
        connect: bool = True,
        name: bytes | None = None,
    ) -> None:
        self.asynchronous = AsyncClient(address, connect_timeout_s=connect_timeout_s, key=key, name=name)
        self.address = address
        self.thread = LoopThread(self.asynchronous)
        self._forgotten = self._when_forgotten(self.thread.close)
        if connect:
            self.connect()

    def __repr__(self) -> str:
        return f"<Client of {self.address}{', closed' if self.thread.closed else ''}>"

    def __enter__(self) -> Self:
        if self.thread.closed:
            raise ServerError("the client was closed")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Find out whether a server answers, and close this client if none does; does nothing the second time."""
        try:
            self.run(self.asynchronous.connect())
        except BaseException:
            self.close()
            raise

    @documented
    def generate(
        self,
        prompt: str,
        *,
        callback: Callback | None = None,
        progress: bool | None = None,
        **parameters: Unpack[Parameters],
    ) -> Result:
        """Make images and wait for them. Ctrl-C cancels the request.

        Parameters that are not given are the checkpoint's and the server's defaults, a random seed among them. Raises
        `ArgumentError` for a bad parameter, `QueueFullError`, `RequestTimeoutError` after `timeout_s` seconds,
        `CancelledError`, and `RankError` if the engine failed; all are `Krea2Error`s.

        callback: called as callback(step, steps, preview) while images are made, in this thread: `step` of `steps` are
        done, over all images; preview is None or, with `preview_every`, one of Pillow's images, whose info["index"]
        says of which image. What it raises cancels the request and is raised. Steps come in order, and none twice, but
        a slow callback misses some; they begin anew if ranks are lost.

        progress: whether to show a bar. None: in a notebook, and where stderr is a terminal.
        """
        show = is_watched() if progress is None else progress
        if callback is None and not show:
            return self.run(self.asynchronous.generate(prompt, **parameters))
        check_callback(callback, may_be_async=False)
        events = self._iterate(self.asynchronous.follow(*make_request(prompt, parameters, "generate")))
        with Watching(callback, show) as watching, closing(events):
            for event in events:
                watching.hear(event)
                if isinstance(event, Result):
                    return event
        raise AssertionError("a stream ends with its result")

    @documented
    def stream(self, prompt: str, **parameters: Unpack[Parameters]) -> Iterator[Event]:
        """Make images and follow them: `Accepted`, `Progress`, an `ImageFile` each, and at last the `Result`.

        With `preview_every` n, a `PreviewFile` of each image after every n of its steps. A program that is slow to read
        gets only the newest progress and previews, so that some are missing, and one kind may overtake the other.
        Raises what `generate` raises. Leaving the loop cancels the request.
        """
        return self._iterate(self.asynchronous.stream(prompt, **parameters))

    cancel = _in_thread(AsyncClient.cancel)
    load_lora = _in_thread(AsyncClient.load_lora)
    unload_lora = _in_thread(AsyncClient.unload_lora)
    loras = _in_thread(AsyncClient.loras)
    status = _in_thread(AsyncClient.status)
    metrics = _in_thread(AsyncClient.metrics)
    ping = _in_thread(AsyncClient.ping)

    def close(self) -> None:
        """Cancel what is waiting and disconnect: the client cannot be used after that. Does nothing the second time."""
        self._forgotten.detach()
        self.thread.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine over the asyncio client in this client's thread, and wait for it."""
        return self.thread.run(work)

    def _when_forgotten(self, close: Callable[[], None]) -> weakref.finalize[..., Any]:
        """Have `close` called, which must not refer to this client, if nobody refers to it any more."""
        forgotten = weakref.finalize(self, close_forgotten, close)
        forgotten.atexit = False
        return forgotten

    def _iterate(self, events: AsyncIterator[Event]) -> Generator[Event, None, None]:
        reading: asyncio.Task[Any] | None = None

        async def next_event() -> Event | None:
            nonlocal reading
            reading = asyncio.current_task()
            return await anext(events, None)

        async def close() -> None:
            # Ctrl-C may come between the start of a read and our waiting for it, and a stream that is being read cannot
            # be closed.
            if reading is not None and not reading.done():
                reading.cancel()
                await asyncio.wait((reading,), timeout=loop_thread.CANCEL_S)
            if reading is None or reading.done():
                await events.aclose()  # type: ignore[attr-defined]

        try:
            while (event := self.run(next_event())) is not None:
                yield event
        finally:
            with suppress(ServerError):  # closed, and the stream with it
                self.run(close())
