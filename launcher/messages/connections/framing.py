"""Follows the frames of a connection that speaks zmq: how much of a message has come that is not whole yet.

libzmq keeps the frames of a message until its last one has come, however many these are and whoever sends them, and
hands all on at once: its limit is of one frame. What is encrypted is one frame after another to who cannot read it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

MOST_UNDER_WAY = 2**30  # bytes of the messages of all connections that have not come whole
_GREETINGS = {1: 12, 3: 64}  # bytes, by the revision of the protocol: that of libzmq 3, and all since 4
_REVISION_AT = 10
_MORE, _LONG = 1, 2  # flags of a frame
_SHORT_HEAD, _LONG_HEAD = 2, 9  # bytes: the flags, and how long the frame is


Connection = TypeVar("Connection")


class FramingError(Exception):
    """What comes is not zmq's, or a message of too many frames."""


class Framing:
    """Takes what comes from a connection, in whatever pieces. under_way: bytes of the message that is not whole.

    most_frames: that a message may have.
    """

    def __init__(self, most_frames: int) -> None:
        self.under_way = 0
        self._most_frames = most_frames
        self._frames = 0  # of the message under way
        self._greeting: bytes | None = b""  # None once it has come
        self._head = b""  # of a frame, while it is not whole
        self._left = 0  # bytes of a frame's body that have not come
        self._more = False  # whether another frame of its message follows it

    def take(self, data: bytes) -> None:
        """Follow what comes next. Raises `FramingError`."""
        if self._greeting is not None:
            data = self._greet(self._greeting + data)
        position, end = 0, len(data)
        while position < end:
            if self._left:
                taken = min(self._left, end - position)
                position += taken
                self._left -= taken
                self.under_way += taken
            else:
                size = _LONG_HEAD if (self._head or data[position : position + 1])[0] & _LONG else _SHORT_HEAD
                part = data[position : position + size - len(self._head)]
                self._head += part
                position += len(part)
                if len(self._head) < size:
                    return
                self._begin_frame()
            if not self._left and not self._more:
                self.under_way = self._frames = 0

    def _greet(self, data: bytes) -> bytes:
        """Take the greeting, and return what comes after it."""
        if len(data) > _REVISION_AT:
            size = _GREETINGS.get(min(data[_REVISION_AT], max(_GREETINGS)))
            if data[0] != 0xFF or not data[_REVISION_AT - 1] & 1 or size is None:
                raise FramingError("what came is not the greeting of a zmq client")
            if len(data) >= size:
                self._greeting = None
                return data[size:]
        self._greeting = data
        return b""

    def _begin_frame(self) -> None:
        flags, size = self._head[0], self._head[1:]
        self._head = b""
        self._left = struct.unpack(">Q", size)[0] if flags & _LONG else size[0]
        self._more = bool(flags & _MORE)
        self._frames += 1
        if self._frames > self._most_frames:
            raise FramingError(f"a message has more than {self._most_frames} frames")


class Unfinished(Generic[Connection]):
    """The messages of many connections that have not come whole. end: hears which connection is to end, and why: one
    that speaks no zmq, or sends a message of too many frames, or whose message began first when all have too much."""

    def __init__(self, most_frames: int, end: Callable[[Connection, str], None]) -> None:
        self._most_frames, self._end = most_frames, end
        self._bytes: dict[Connection, int] = {}  # in the order in which the messages began

    def begin(self, connection: Connection) -> Callable[[bytes], bool]:
        """Return what is to hear all that comes from a connection, and says whether that may pass."""
        return partial(self._take, connection, Framing(self._most_frames))

    def forget(self, connection: Connection) -> None:
        """Know a connection no longer, which has ended."""
        self._bytes.pop(connection, None)

    def _take(self, connection: Connection, framing: Framing, data: bytes) -> bool:
        try:
            framing.take(data)
        except FramingError as error:
            self.forget(connection)
            self._end(connection, str(error))
            return False
        if framing.under_way < self._bytes.get(connection, 0):  # that message is whole
            del self._bytes[connection]
        if framing.under_way:
            self._bytes[connection] = framing.under_way
        may_pass = True
        while sum(self._bytes.values()) > MOST_UNDER_WAY:
            first = next(iter(self._bytes))
            self.forget(first)
            self._end(first, "messages that have not come whole hold too much memory")
            may_pass = may_pass and first is not connection
        return may_pass
