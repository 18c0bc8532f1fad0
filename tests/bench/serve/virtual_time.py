"""An event loop whose clock jumps to the next timer, so that sleeping takes no time and durations are exact."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from bench.serve import traffic

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    """Waits for no file longer than it takes to look, if there is a timer; that time has passed then."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout else timeout)
        if not ready and timeout:
            self.now += timeout
        return ready


def run_in_virtual_time(test: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing but timers, `bench.serve.traffic` having this clock too."""
    selector = _Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=lambda: loop) as runner:
        patch.setattr(traffic, "time", SimpleNamespace(perf_counter=loop.time))
        return runner.run(test)
