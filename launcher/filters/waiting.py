"""What waits to be checked by one filter, and in which order it is."""

from __future__ import annotations

import asyncio
from collections import deque
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

    def take(self, most: int) -> list[Check]:
        """Take what is to be checked next: of one method, without what nobody waits for any more."""
        for queue in self._all:
            while queue and queue[0].answer.done():
                queue.popleft()
        if self.again:
            return [self.again.popleft()]
        queue = self.drawn or self.soon or self.later
        batch: list[Check] = []
        size = 0
        while queue and len(batch) < most:
            check = queue[0]
            size += len(check.item.rgb) if isinstance(check.item, Picture) else 0
            if batch and (check.method != batch[0].method or size > _BATCH_BYTES):
                break
            queue.popleft()
            if not check.answer.done():
                batch.append(check)
        return batch

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


def fail_check(check: Check, error: CheckFailedError) -> None:
    """Tell whoever waits for it that a check has failed."""
    if not check.answer.done():
        check.answer.set_exception(error)
