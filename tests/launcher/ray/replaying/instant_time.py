"""An event loop whose time passes at once: where all wait, it is when the first of them wants to be woken."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_ENDLESS_S = 5000.0  # of its time, by which a test waits for what never comes
_LEAST_S = 1e-6  # that each turn of the loop takes


class InstantLoop(asyncio.SelectorEventLoop):
    """Waits for nothing but its own timers, and for what other threads call in it while it has any. Raises
    `AssertionError` where all wait for ever."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Return the seconds since it was made."""
        return self.now


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: InstantLoop) -> None:
        super().__init__()
        self._loop, self._end = loop, _ENDLESS_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout is None:
            raise AssertionError("all wait for ever")
        if not found and timeout is not None:
            self._loop.now += max(timeout, _LEAST_S)
            if self._loop.now > self._end:
                self._end = math.inf  # for what is to be ended then
                raise AssertionError("this goes on for ever")
        return found


def run_instantly(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an `InstantLoop`."""
    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        return runner.run(main)


def instant_now() -> float:
    """The time of the running loop."""
    return asyncio.get_running_loop().time()
