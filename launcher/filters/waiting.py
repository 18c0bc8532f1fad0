"""What waits to be checked by one filter, in which order it is, and how much of it at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from launcher.filters.child import CheckFailedError
from launcher.filters.exchange import Method
from launcher.filters.protocol import Picture, Prompt

_BATCH_BYTES = 2**27  # of a batch's pictures, unless one alone has more
_MOST_WAITING = 4096


@dataclass(eq=False)
class Check:
    """A prompt or picture, by when it is to be done, in the loop's time, and how often a process has failed over it."""

    method: Method
    item: Prompt | Picture
    deadline: float
    answer: asyncio.Future[Any]
    failures: int = 0


@dataclass
class Waiting:
    """What waits. again: for a second try, each alone, since any of a batch may have been why it failed. drawn: images,
    so that no number of prompts makes what has cost most come too late. later: previews, for which nobody waits as for
    an image."""

    again: deque[Check] = field(default_factory=deque)
    drawn: deque[Check] = field(default_factory=deque)
    soon: deque[Check] = field(default_factory=deque)
    later: deque[Check] = field(default_factory=deque)

    def __len__(self) -> int:
        return sum(map(len, self._all))

    def is_full_for(self, item: Prompt | Picture) -> bool:
        """Whether so much waits that this may not. Images may: as many come as can be drawn."""
        return self._queue_of(item) is not self.drawn and len(self) >= _MOST_WAITING

    def add(self, check: Check) -> None:
        """Let something wait for its first try."""
        self._queue_of(check.item).append(check)

    def drop(self, check: Check) -> None:
        """Hold a prompt or picture no longer for which nobody waits any more."""
        for queue in self._all:
            with suppress(ValueError):  # it is not in this one
                queue.remove(check)

    def take(self, most: Callable[[Method], int]) -> list[Check]:
        """Take what is to be checked next: as many as may be of one method, without what nobody waits for any more."""
        for queue in self._all:
            while queue and queue[0].answer.done():
                queue.popleft()
        if self.again:
            return [self.again.popleft()]
        queue = self.drawn or self.soon or self.later
        batch: list[Check] = []
        size = 0
        while queue and len(batch) < most(queue[0].method):
            check = queue[0]
            size += len(check.item.rgb) if isinstance(check.item, Picture) else 0
            if batch and (check.method != batch[0].method or size > _BATCH_BYTES):
                break
            queue.popleft()
            if not check.answer.done():
                batch.append(check)
        return batch

    def turns(self, most: int) -> float:
        """Say how many batches of at most so many wait, besides previews."""
        return len(self.again) + (len(self.drawn) + len(self.soon)) / most

    def fail(self, error: CheckFailedError) -> None:
        """Fail all that wait."""
        for queue in self._all:
            while queue:
                fail_check(queue.popleft(), error)

    def _queue_of(self, item: Prompt | Picture) -> deque[Check]:
        kind = item.kind if isinstance(item, Picture) else "prompt"
        return {"image": self.drawn, "preview": self.later}.get(kind, self.soon)

    @property
    def _all(self) -> tuple[deque[Check], ...]:
        return self.again, self.drawn, self.soon, self.later


class BatchSizes:
    """How many a filter gets at once: one at first, twice as many after a batch that took at most half of `timeout_s`,
    up to `most`, and half of what was late.

    So one that does each after the other is not given more than it can do, and one that does them together gets all.
    """

    def __init__(self, most: int, timeout_s: float) -> None:
        self._most, self._timeout_s = most, timeout_s
        self._sizes: dict[Method, int] = {}

    def most(self, method: Method) -> int:
        """Say how many there may be in a batch."""
        return self._sizes.get(method, 1)

    def took(self, method: Method, size: int, seconds: float) -> None:
        """Note how long a batch has taken."""
        if size >= self.most(method) and 2 * seconds <= self._timeout_s:
            self._sizes[method] = min(2 * size, self._most)

    def was_late(self, method: Method, size: int) -> None:
        """Note that a batch was not done in time."""
        self._sizes[method] = max(1, min(size, self.most(method)) // 2)


def fail_check(check: Check, error: CheckFailedError) -> None:
    """Tell whoever waits for it that a check has failed."""
    if not check.answer.done():
        check.answer.set_exception(error)
