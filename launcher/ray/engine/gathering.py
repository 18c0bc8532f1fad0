"""Puts replies that come close together into one chunk, since each chunk costs a few milliseconds on its way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from launcher.messages.client_messages import Accepted, Progress, Reply
from launcher.ray.replaying.silence import ALIVE_S

WAIT_S = 0.05  # of progress for more of it; where it is of no use otherwise, also of what comes before it

Replies = list[tuple[Reply, bytes]]


class Gathering:
    """The replies to one request, gathered. progress: whether more than an attempt's first `Progress` is of use."""

    def __init__(self, replies: AsyncGenerator[tuple[Reply, bytes], None], *, progress: bool) -> None:
        self._replies, self._progress = replies, progress
        self._gathered: Replies = []
        self._begun = 0  # the attempt that is known to have begun
        self._changed = asyncio.Event()
        self._ended = False

    async def chunks(self) -> AsyncGenerator[Replies, None]:
        """Yield replies as they come, some at once, and none where there are none for a while: whoever waits is to know
        that this engine does not hang. Raises what the request ends with, once all before was yielded."""
        reading = asyncio.create_task(self._read())
        loop = asyncio.get_running_loop()
        passed_on = -WAIT_S if self._progress else loop.time()  # a short request is one chunk, if nobody follows it
        try:
            while not reading.done() or self._gathered:
                if not self._gathered and not await self._change():
                    yield []
                    continue
                await self._wait_until(passed_on + WAIT_S)
                self._changed.clear()
                if self._gathered:
                    chunk, self._gathered = self._gathered, []
                    passed_on = loop.time()
                    yield chunk
            await reading
        finally:
            reading.cancel()
            await asyncio.wait((reading,))

    async def _change(self) -> bool:
        """Wait for something to come, but not for long. Returns whether it has."""
        try:
            async with asyncio.timeout(ALIVE_S):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _wait_until(self, due: float) -> None:
        """Wait, but no longer than for something that is to be passed on at once."""
        loop = asyncio.get_running_loop()
        patient = Progress if self._progress else (Accepted, Progress)
        while not self._ended and all(isinstance(reply, patient) for reply, _ in self._gathered):
            if (left := due - loop.time()) <= 0:
                return
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return

    async def _read(self) -> None:
        try:
            async with aclosing(self._replies) as replies:
                async for reply, file in replies:
                    self._take(reply, file)
        finally:
            self._ended = True
            self._changed.set()

    def _take(self, reply: Reply, file: bytes) -> None:
        if isinstance(reply, Progress):
            if reply.attempt <= self._begun and not self._progress:
                return
            self._begun = reply.attempt
            self._gathered = [each for each in self._gathered if not isinstance(each[0], Progress)]
        self._gathered.append((reply, file))
        self._changed.set()
