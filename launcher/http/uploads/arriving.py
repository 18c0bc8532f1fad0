"""Bounds the large bodies that arrive at the same time: those who take long make room for those who come."""

from __future__ import annotations

import asyncio

from engine.errors import Krea2Error, error_from_code

MOST_AT_ONCE = 2**30  # bytes of all
PATIENCE_S = 30.0  # for a body whose room others need: 50 MB come so by 13 Mbit/s


class Arriving:
    """The large bodies that arrive, each known by the timeout that it has."""

    def __init__(self) -> None:
        self._bodies: dict[asyncio.Timeout, tuple[float, int]] = {}  # when each began, and its bytes that have come

    def grew(self, body: asyncio.Timeout, began: float, size: int) -> None:
        """Count what has come of a body since it began by the event loop's clock. If all have too much, those that have
        taken long end by their timeouts, the first of them first; raises the error for this one if there are none."""
        now = asyncio.get_running_loop().time()
        self._bodies[body] = began, size
        while sum(size for _, size in self._bodies.values()) > MOST_AT_ONCE:
            first = min(self._bodies, key=lambda each: self._bodies[each][0])
            if first is body or now - self._bodies[first][0] < PATIENCE_S:
                raise _full()
            del self._bodies[first]
            first.reschedule(now)

    def ended(self, body: asyncio.Timeout) -> None:
        """Count a body no longer."""
        self._bodies.pop(body, None)


def _full() -> Krea2Error:
    return error_from_code("queue_full", "too many pictures are being sent: try again in a moment")
