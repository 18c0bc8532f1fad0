"""Replies that a client has not read yet: all images, and of everything else the newest."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from engine.errors import Krea2Error
from launcher.messages.client_messages import Accepted, Image, Preview, Progress

Told = Accepted | Progress | Preview | Image


class Unread:
    """Keeps replies in the order in which they came, of a kind the newest in place of the others: who reads slowly
    holds nobody up, and is not told what is over."""

    def __init__(self) -> None:
        self._replies: dict[Hashable, tuple[Told, bytes]] = {}
        self._changed = asyncio.Event()
        self._ended = False
        self._error: Krea2Error | None = None

    def put(self, reply: Told, file: bytes) -> None:
        """Keep a reply with its file. What else is unread of an earlier attempt is forgotten, but for images."""
        for kind, (other, _) in list(self._replies.items()):
            if other.attempt < reply.attempt and not isinstance(other, Image):
                del self._replies[kind]
        self._replies[type(reply), getattr(reply, "index", None)] = reply, file
        self._changed.set()

    def forget_previews(self, index: int) -> None:
        """Forget the previews of an image, which is there."""
        self._replies.pop((Preview, index), None)

    def end(self, error: Krea2Error | None) -> None:
        """End what can be read: after what is unread, with this error if there is one."""
        self._ended, self._error = True, error
        self._changed.set()

    async def next(self) -> tuple[Told, bytes] | None:
        """Wait for a reply and return the oldest; None at the end. Raises the error that it ends with."""
        while not self._replies:
            if self._error is not None:
                raise self._error.with_traceback(None)
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._replies.pop(next(iter(self._replies)))
