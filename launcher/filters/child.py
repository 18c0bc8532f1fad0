"""A filter's process, as the front-end has it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from launcher import socket_frames
from launcher.filters.exchange import (
    MOST_BYTES,
    Failed,
    Marked,
    Method,
    NotUp,
    PictureHead,
    Up,
    Work,
    check_scores,
    decode_answer,
    decode_start,
)
from launcher.filters.protocol import Picture, Prompt, Scores
from launcher.messages.configs import FilterConfig, FilterSpec
from launcher.messages.encoding import encode
from launcher.processes import Child
from launcher.threads import in_own_thread

START_S = 300.0  # for a filter to come up, with its model
_END_S = 3.0  # for the end of a process that has closed its socket to be known


class CheckFailedError(Exception):
    """A check came to nothing.

    reason: one word, for metrics: `died`, `late`, `full`, `start`, or a `Reason`. keeps_process: whether it can go on.
    """

    def __init__(self, reason: str, message: str, *, keeps_process: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.keeps_process = keeps_process


class FilterProcess:
    """A process that is a filter, and our end of the socket pair to it. Raises `CheckFailedError` if there is none.

    on_exit: called in the event loop once it has ended.
    """

    def __init__(self, spec: FilterSpec, on_exit: Callable[[], None]) -> None:
        self.spec = spec
        self.has_ended = False
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            config = FilterConfig(socket_fd=theirs.fileno(), spec=spec)
            try:
                self.child = Child("_filter", config, echo=f"filter {spec.label}", pass_fds=(config.socket_fd,))
            except OSError as error:
                self._socket.close()
                raise CheckFailedError("start", f"no process can be started: {error.strerror}") from None
        self.child.on_exit(self._ended_in_thread)

    async def come_up(self) -> Up:
        """Wait for it to be a filter. Raises `CheckFailedError` with why it is none."""
        try:
            async with asyncio.timeout(START_S):
                start = decode_start(await socket_frames.receive_message_async(self._socket, MOST_BYTES))
        except TimeoutError:
            raise CheckFailedError("start", f"it was not ready within {START_S:g} s") from None
        except (OSError, EOFError):
            raise CheckFailedError("start", await self._end_of_life()) from None
        except ValueError as error:
            raise CheckFailedError("start", f"what it said is no message: {error}") from None
        if isinstance(start, NotUp):
            raise CheckFailedError("start", start.message)
        return start

    async def ask(
        self, method: Method, items: Sequence[Prompt | Picture], patience_s: float
    ) -> Sequence[Scores] | Sequence[bytes]:
        """Have it check or mark some prompts or pictures. Raises `CheckFailedError`, after which it is of no use unless
        the error says so."""
        try:
            async with asyncio.timeout(patience_s):
                return await self._ask(method, items, patience_s)
        except TimeoutError:
            raise CheckFailedError("late", f"it did not answer within {patience_s:.3g} s") from None
        except (OSError, EOFError):
            raise CheckFailedError("died", await self._end_of_life()) from None
        except (ValueError, msgspec.MsgspecError) as error:
            raise CheckFailedError("garbage", f"what it answered is no answer: {error}") from None

    def kill(self) -> None:
        """End it, whatever it does."""
        self._on_exit = lambda: None
        self.child.send_signal(signal.SIGKILL)

    def end(self) -> None:
        """End it, when nobody asks it any more."""
        self.kill()
        self._socket.close()

    async def _ask(
        self, method: Method, items: Sequence[Prompt | Picture], patience_s: float
    ) -> Sequence[Scores] | Sequence[bytes]:
        pictures = [item for item in items if isinstance(item, Picture)]
        heads = tuple(PictureHead(each.width, each.height, each.kind, each.prompt) for each in pictures)
        work = Work(method, patience_s, tuple(item for item in items if isinstance(item, Prompt)), heads)
        await socket_frames.send_async(self._socket, encode(work), *(picture.rgb for picture in pictures))
        answer = decode_answer(await socket_frames.receive_message_async(self._socket, MOST_BYTES))
        if isinstance(answer, Failed):
            raise CheckFailedError(answer.reason, answer.message, keeps_process=answer.reason == "unavailable")
        if isinstance(answer, Marked):
            if method != "mark_images":
                raise ValueError("marks in place of scores")
            return [await socket_frames.receive_async(self._socket, len(picture.rgb)) for picture in pictures]
        if method == "mark_images" or len(answer.scores) != len(items):
            raise ValueError(f"{len(answer.scores)} scores for {len(items)} items of {method}")
        return [check_scores(scores) for scores in answer.scores]

    async def _end_of_life(self) -> str:
        await in_own_thread(lambda: self.child.wait(_END_S))
        return f"its process {self.child.describe_exit()}"

    def _ended_in_thread(self) -> None:
        def ended() -> None:
            self.has_ended = True
            self._on_exit()

        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(ended)
