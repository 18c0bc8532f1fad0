"""Time in which we ran, so that who was stopped and wakes up late does not blame others for what it did not hear.

A process stands still under SIGSTOP, in a container that is paused, on a machine that is migrated, and while one
callback keeps its event loop. What others said meanwhile is read only afterwards, but by the usual clocks everything
they owe is overdue by then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

TICK_S = 0.25  # between readings of the clock, at most
ASLEEP_S = 1.0  # between readings, above which they are sleep: a loaded machine has shorter gaps
T = TypeVar("T")


class AwakeClock:
    """Counts the seconds in which whoever reads it every `TICK_S` seconds could run: it stands still in longer gaps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read = clock()
        self._slept = 0.0

    def __call__(self) -> float:
        now = self._clock()
        if now - self._read > ASLEEP_S:
            self._slept += now - self._read
        self._read = now
        return now - self._slept

    def wait(self, is_done: Callable[[float], bool], seconds: float) -> bool:
        """Wait until it is done, `seconds` awake at most. Returns whether it is.

        is_done: waits for as many seconds as it is told, a few at most, and returns the same.
        """
        due = self() + seconds
        while not is_done(max(0.0, min(TICK_S, due - self()))):
            if self() >= due:
                return False
        return True


class AwakeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is an `AwakeClock`'s, and with it that of every timer and timeout."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._awake = AwakeClock(clock)
        super().__init__()
        self._tick()

    def time(self) -> float:
        """Return the seconds in which this loop could run."""
        return self._awake()

    def _tick(self) -> None:
        self.call_later(TICK_S, self._tick)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does, in an `AwakeLoop`."""
    with asyncio.Runner(loop_factory=AwakeLoop) as runner:
        return runner.run(main)


class RealTimer:
    """Calls back after `seconds` that are counted also while the running loop's clock stands still."""

    def __init__(self, seconds: float, callback: Callable[..., object], *arguments: object) -> None:
        self._due = time.monotonic() + seconds
        self._callback, self._arguments = callback, arguments
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle
        self._arm()

    def cancel(self) -> None:
        """Never call back, if that has not happened."""
        self._timer.cancel()

    def _arm(self) -> None:
        left = self._due - time.monotonic()
        if left > 0:
            self._timer = self._loop.call_later(min(ASLEEP_S, left), self._arm)
        else:
            self._timer = self._loop.call_soon(self._callback, *self._arguments)
