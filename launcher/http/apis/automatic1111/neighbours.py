"""What the other HTTP processes draw for a caller: each request has a socket in the run folder while it is under way,
where any of the processes asks how far it is, or ends it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

_ANSWER_S = 1.0  # after which a process that hangs is passed over


class Seen(msgspec.Struct):
    """How far a request is. name: txt2img or img2img; position: of images in the queue before it; steps: of all images,
    0 until the first is done; ends: by the monotonic clock, which processes have in common, once that is known."""

    name: str
    num_images: int
    began: float
    position: int
    step: int
    steps: int
    ends: float | None
    images_done: int
    interrupted: bool
    preview: bytes | None

    @property
    def fraction(self) -> float:
        """How much of it is done."""
        return self.step / self.steps if self.steps else 0.0


class Question(msgspec.Struct):
    """What is asked of a request: how far it is, with its newest preview or without, and to be ended after that."""

    with_image: bool = False
    interrupt: bool = False


class Neighbours:
    """This process' way to the requests of the others. worker: its number; None if there are no others."""

    def __init__(self, run_folder: str, worker: int | None) -> None:
        self._folder, self._worker = Path(run_folder), worker
        self._numbers = itertools.count()

    @asynccontextmanager
    async def asking(self, caller: str, tell: Callable[[Question], Seen]) -> AsyncIterator[None]:
        """Let the others ask about a request of the caller's meanwhile. Where no socket can be, they learn nothing."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, msgspec.DecodeError):
                question = msgspec.msgpack.decode(await reader.read(), type=Question)
                writer.write(msgspec.msgpack.encode(tell(question)))
                await writer.drain()
            writer.close()

        server = None
        path = self._folder / f"{_prefix(caller)}{self._worker}-{next(self._numbers)}.sock"
        if self._worker is not None:
            with suppress(OSError):
                server = await asyncio.start_unix_server(serve, path)
        try:
            yield
        finally:
            if server is not None:
                server.close()
                path.unlink(missing_ok=True)

    async def ask(self, caller: str, question: Question) -> list[Seen]:
        """Ask the other processes about all requests of the caller."""
        if self._worker is None:
            return []
        own = f"{_prefix(caller)}{self._worker}-"
        paths = [path for path in self._folder.glob(f"{_prefix(caller)}*") if not path.name.startswith(own)]
        answers = await asyncio.gather(*(_ask(path, question) for path in paths))
        return [answer for answer in answers if answer is not None]


def _prefix(caller: str) -> str:
    return f"sdapi-{hashlib.sha256(caller.encode()).hexdigest()[:16]}-"


async def _ask(path: Path, question: Question) -> Seen | None:
    """None where the request has ended, or its process has died or hangs."""
    with suppress(OSError, TimeoutError, msgspec.DecodeError):
        async with asyncio.timeout(_ANSWER_S):
            try:
                reader, writer = await asyncio.open_unix_connection(path)
            except ConnectionRefusedError:  # its process has died
                path.unlink(missing_ok=True)
                return None
            try:
                writer.write(msgspec.msgpack.encode(question))
                writer.write_eof()
                return msgspec.msgpack.decode(await reader.read(), type=Seen)
            finally:
                writer.close()
    return None
