"""A client of a front-end, for asyncio: what can be asked over a `Connection`."""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Unpack

import msgspec

from launcher.client.connection import Connection
from launcher.client.parameters import LikeNoPipeline, Parameters, documented, make_request
from launcher.client.results import Event, Following, Result
from launcher.client.watching import Callback, Watching
from launcher.messages import client_messages as messages
from launcher.parameters.values import PICTURES

NO_FILES: Mapping[str, bytes] = MappingProxyType({})
LOAD_LORA_S = 300.0  # for a LoRA to be read, and for the ranks to begin a step


class AsyncClient(Connection, LikeNoPipeline):
    """A client inside an event loop, which must not be blocked for longer than the server's lease of 20 s.

    Connects when first used, or in `async with`. Every method raises `ServerError` if the server does not answer, and
    `ArgumentError` if nothing can be connected to such an address. `key`: this client's `.key_secret` file, for a
    server with keys.
    """

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @documented
    async def generate(
        self,
        prompt: str,
        *,
        callback: Callback | None = None,
        progress: bool = False,
        **parameters: Unpack[Parameters],
    ) -> Result:
        """Make images and wait for them. Cancelling this call cancels the request.

        Parameters that are not given are the checkpoint's and the server's defaults, a random seed among them. Raises
        the errors of `engine.errors`: `ArgumentError` for a bad parameter, `QueueFullError`, `RequestTimeoutError`
        after `timeout_s` seconds, `CancelledError`, and `RankError` if the engine failed.

        callback: called as callback(step, steps, preview) while images are made, in this event loop, and awaited if it
        is a coroutine function: `step` of `steps` are done, over all images; preview is None or, with `preview_every`,
        one of Pillow's images, whose info["index"] says of which image. What it raises cancels the request and is
        raised. Steps come in order, and none twice, but a slow callback misses some; they begin anew if ranks are lost.

        progress: show a bar in a notebook or on stderr.
        """
        with Watching(callback, progress) as watching:
            async with aclosing(self._stream(prompt, parameters, "generate")) as events:
                async for event in events:
                    answer = watching.hear(event)
                    if inspect.isawaitable(answer):
                        await answer
                    if isinstance(event, Result):
                        return event
        raise AssertionError("a stream ends with its result")

    @documented
    def stream(self, prompt: str, **parameters: Unpack[Parameters]) -> AsyncIterator[Event]:
        """Make images and follow them: `Accepted`, `Progress`, an `ImageFile` each, and at last the `Result`.

        With `preview_every` n, a `PreviewFile` of each image after every n of its steps. A client that is slow to read
        gets only the newest progress and previews, so that some are missing, and one kind may overtake the other.
        Raises what `generate` raises. Closing the iterator cancels the request.
        """
        return self._stream(prompt, parameters, "stream")

    def _stream(self, prompt: str, parameters: Parameters, call: str) -> AsyncGenerator[Event, None]:
        return self.follow(*make_request(prompt, parameters, call))

    async def follow(
        self, request: messages.Generate, files: Mapping[str, bytes] = NO_FILES, warnings: tuple[str, ...] = ()
    ) -> AsyncGenerator[Event, None]:
        """Follow a request as `stream` does, from its message. `Accepted` and the result have these warnings, too.

        files: those of its pictures, by their names, which the message need not list.
        """
        following = Following(request, warnings)
        async with aclosing(self.replies(request, files)) as replies:
            del files
            async for reply, file in replies:
                for event in following.hear(reply, file):
                    yield event

    async def replies(
        self, request: messages.Generate, files: Mapping[str, bytes] = NO_FILES
    ) -> AsyncGenerator[tuple[messages.Reply, bytes], None]:
        """Yield what the server replies to a request, each with the file behind it, until it has sent every image.

        files, what is left out and what is raised are as in `follow`; closing it early cancels the request.
        """
        names = tuple(name for name in PICTURES if name in files)
        request = msgspec.structs.replace(request, pictures=names)
        call = await self._begin_call(request, [files[name] for name in names])
        del files
        came: set[int] = set()
        ended = False
        try:
            while not ended:
                reply, file = await call.next_reply()
                if isinstance(reply, messages.Image):
                    came.add(reply.index)
                    ended = len(came) == reply.num_images
                yield reply, file
        finally:
            self._end_call(call, cancel=not ended)

    async def cancel(self, request_id: str) -> None:
        """Cancel a request of this client: its call raises `CancelledError`. Harmless for one that has ended."""
        await self.connect()
        self._send(messages.Cancel(request_id=request_id))

    async def load_lora(self, name: str, path: str | None = None, strength: float = 1.0) -> messages.Loras:
        """Load a LoRA file, by its path in the server's `--lora-dir`, for requests to choose by `name`.

        path: None for the name itself, as of the demos' "demo-outlined", which lies in no such folder. strength: of
        requests that give none. Returns what is loaded then. Raises `ArgumentError` if the server does not allow the
        file or the name, and `LoraError` if the file does not fit the model, or into the ranks' memory.
        """
        path = name if path is None else path
        question = messages.LoadLora(request_id=uuid.uuid4().hex, name=name, path=path, strength=strength)
        return await self._ask(question, messages.Loras, LOAD_LORA_S)

    async def unload_lora(self, name: str) -> messages.Loras:
        """Let requests choose a LoRA no more; requests that have chosen it are finished. Returns what is left.

        Raises `ArgumentError` if there is none of that name, or if the server has no `--lora-dir`.
        """
        return await self._ask(messages.UnloadLora(request_id=uuid.uuid4().hex, name=name), messages.Loras)

    async def loras(self) -> messages.Loras:
        """List the LoRAs that requests may choose, and the LoRAs that are part of the weights."""
        return await self._ask(messages.ListLoras(request_id=uuid.uuid4().hex), messages.Loras)

    async def status(self) -> messages.StatusReply:
        """Ask what the server is doing."""
        return await self._ask(messages.Status(), messages.StatusReply)

    async def metrics(self) -> bytes:
        """Ask for the server's metrics, in Prometheus' text format."""
        return await self._ask(messages.Metrics(), messages.MetricsReply)

    async def ping(self) -> float:
        """Measure the seconds to the server and back."""
        began = time.monotonic()
        await self._ask(messages.Ping(), messages.Pong)
        return time.monotonic() - began
