"""Has pictures read by a process of its own, one after the other, under limits."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Mapping

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, Krea2Error, QueueFullError, ServerError
from engine.pictures.pixels import Pixels
from launcher import socket_frames
from launcher.logs import log_event
from launcher.messages.client_messages import Generate
from launcher.messages.configs import PicturesConfig
from launcher.messages.encoding import encode
from launcher.messages.limits import Limits
from launcher.pictures.exchange import MOST_BYTES, READ_S, UP, Answer, Begun, Laid, Refused, Work, decode_answer
from launcher.pictures.file_kinds import check_bytes
from launcher.pictures.prepared import Patch, PreparedPicture
from launcher.pictures.wanted import Wanted
from launcher.processes import TERMINATE_S, Child
from launcher.threads import in_own_thread

_PATIENCE_S = 60.0  # for a file, of which `READ_S` are its own, on a machine with much else to do
_START_S = 180.0  # for the process to come up, and to have the files, there
_SHUT = "the server is shutting down"
_END_S = 60.0  # for its end to be known, once its socket is closed: Python's own may take long, there
_CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL")  # ends that a damaged file can be the reason of
# glibc is to give back what a large picture took, and to reserve no address space for each thread.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}


class PictureReader:
    """Reads the pictures of requests in a process that is started for the first of them.

    To be made in the event loop that it is used in.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()  # whoever came first is first
        self._waiting = 0
        self._process: _Process | None = None
        self._closed = False

    async def read(
        self, request: Generate, files: Mapping[str, bytes], model: ModelConfig, limits: Limits
    ) -> PreparedPicture:
        """Read the files of a request, by their names in `request.pictures`, and lay them out as it asks.

        Raises `ArgumentError` about image, mask, or what does not fit them, `QueueFullError` if as many requests wait
        as may, and `ServerError` if there can be no process.
        """
        wanted = Wanted.of(request, model, limits)
        for name in wanted.names:
            check_bytes(name, files[name], limits.max_image_bytes)
        if self._waiting >= limits.max_queue:
            raise QueueFullError(f"{self._waiting} pictures wait to be read, as many as may: come back later")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._read(wanted, files)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the process, and start no other."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()  # whoever waits for it hears that
            process.child.wait(TERMINATE_S)
            if not self._turn.locked():
                self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None

    async def _read(self, wanted: Wanted, files: Mapping[str, bytes]) -> PreparedPicture:
        try:
            answer, parts = await self._ask(wanted, files)
        except _LostError:  # they get another one
            try:
                answer, parts = await self._ask(wanted, files)
            except _LostError as error:
                raise ServerError(_SHUT if self._closed else str(error)) from None
        if isinstance(answer, Refused):
            raise ArgumentError(answer.message, parameter=answer.parameter)
        return _prepared(answer, parts)

    async def _ask(self, wanted: Wanted, files: Mapping[str, bytes]) -> tuple[Laid | Refused, list[bytes]]:
        if self._closed:
            raise ServerError(_SHUT)
        if self._process is None or self._process.child.wait(0):  # it has ended meanwhile: memory may have run out
            self._end()
            self._process = _Process()
        kept = False
        try:
            answer = await self._process.ask(wanted, files)
            kept = True
            return answer
        except asyncio.CancelledError:
            kept = not self._process.is_at_work  # it comes up, for the next: who gives up often keeps nobody waiting
            raise
        except Krea2Error as error:
            raise ServerError(_SHUT) if self._closed else error from None
        finally:
            if not kept:  # what it may still say is of a request that is over
                self._end()


class _LostError(Exception):
    """The process has ended, and the files are not why."""


class _Process:
    """A process, and our end of the socket pair to it. Raises `ServerError` if it cannot be started.

    is_at_work: files have been sent to it, about which it has not said all.
    """

    def __init__(self) -> None:
        self.is_at_work = False
        self._up: asyncio.Task[bytes] | None = None  # waits for it to have come up
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            config = PicturesConfig(socket_fd=theirs.fileno())
            try:
                self.child = Child("_pictures", config, environment=_ENVIRONMENT, pass_fds=(config.socket_fd,))
            except OSError as error:
                self._socket.close()
                raise ServerError(f"pictures cannot be read: no process can be started: {error.strerror}") from None

    async def ask(self, wanted: Wanted, files: Mapping[str, bytes]) -> tuple[Laid | Refused, list[bytes]]:
        """Have it read files. Returns its answer with its parts.

        Raises `ArgumentError` about the file over which it crashes or takes too long, `_LostError` if it ends
        otherwise, and `ServerError` if it does not go on. Whatever is raised, it is of no further use.
        """
        name: str | None = None
        try:
            async with asyncio.timeout(_START_S):
                await self._come_up()
                self.is_at_work = True
                await self._send(wanted, files)
                answer = await self._answer()
            while isinstance(answer, Begun):
                name = answer.name
                async with asyncio.timeout(_PATIENCE_S):
                    answer = await self._answer()
                    parts = await self._parts(answer) if isinstance(answer, Laid) else []
            self.is_at_work = False
            return answer, parts
        except TimeoutError:
            ended = f"did not go on for {_START_S if name is None else _PATIENCE_S:g} s"
            error: Exception = ServerError(f"pictures cannot be read: the process for them {ended}")
        except (OSError, EOFError):
            await in_own_thread(lambda: self.child.wait(_END_S))
            ended = self.child.describe_exit()
            error = _LostError(f"pictures cannot be read: the process for them {ended}")
            if name is not None and "SIGPROF" in ended:
                error = ArgumentError(f"{name} took longer than {READ_S:g} s to read", parameter=name)
            elif name is not None and any(crash in ended for crash in _CRASHES):
                error = ArgumentError(f"{name} could not be read: the process for it {ended}", parameter=name)
        level = "warning" if isinstance(error, ArgumentError) else "error"
        log_event("picture process lost", level=level, reason=ended, picture=name)
        raise error

    def kill(self) -> None:
        """End it, whatever it does."""
        self.child.send_signal(signal.SIGKILL)

    def end(self) -> None:
        """End it, when nobody waits for it any more."""
        self.kill()
        if self._up is None or self._up.done():
            self._socket.close()
        else:
            self._up.add_done_callback(lambda _: self._socket.close())
            self._up.cancel()

    async def _come_up(self) -> None:
        """Wait for it to have come up, which goes on when nobody waits any more."""
        if self._up is None:
            self._up = asyncio.create_task(socket_frames.receive_async(self._socket, len(UP)))
            self._up.add_done_callback(lambda up: up.cancelled() or up.exception())  # whoever waits hears of it
        await asyncio.shield(self._up)

    async def _send(self, wanted: Wanted, files: Mapping[str, bytes]) -> None:
        work = encode(Work(wanted, tuple(len(files[name]) for name in wanted.names)))
        await socket_frames.send_async(self._socket, work, *(files[name] for name in wanted.names))

    async def _answer(self) -> Answer:
        return decode_answer(await socket_frames.receive_message_async(self._socket, MOST_BYTES))

    async def _parts(self, laid: Laid) -> list[bytes]:
        return [await socket_frames.receive_async(self._socket, size) for size in laid.sizes]


def _prepared(laid: Laid, parts: list[bytes]) -> PreparedPicture:
    rgb, mask, alpha, source = parts
    patch = None
    if laid.inner is not None and laid.box is not None:
        patch = Patch(laid.inner, laid.box, alpha, source or None)
    return PreparedPicture(laid.answer_size, Pixels(*laid.drawn, rgb, mask or None), patch, laid.warnings)
