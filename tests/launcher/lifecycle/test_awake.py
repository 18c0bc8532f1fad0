"""A clock that stands still while its reader does, and what keeps time by it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

import pytest

from launcher import awake
from launcher.awake import AwakeClock, AwakeLoop, RealTimer
from tests.launcher.processes import PATIENCE_S

ASLEEP_S, TICK_S = 0.4, 0.05
ASLEEP = 1.5 * ASLEEP_S


@pytest.fixture(autouse=True)
def light_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.awake.ASLEEP_S", ASLEEP_S)
    monkeypatch.setattr("launcher.awake.TICK_S", TICK_S)


class Clock:
    """Passes when a test says so: a loaded machine does not take the time that a test leaves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def run(self, test: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=partial(AwakeLoop, self.monotonic)) as runner:
            runner.run(test)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(awake, "time", clock)  # for timers of real time
    return clock


def test_a_gap_between_readings_is_no_time_and_whatever_else_passes_is() -> None:
    now = 100.0
    clock = AwakeClock(lambda: now)
    began = clock()
    for gap in (TICK_S, ASLEEP_S - 0.01, 25.0, TICK_S, 1e6, 0.0):
        now += gap
        clock()
    assert clock() - began == pytest.approx(ASLEEP_S - 0.01 + 2 * TICK_S)


def test_a_wait_is_over_when_it_is_done_or_its_seconds_awake_have_passed() -> None:
    now = 0.0

    def sleep(seconds: float) -> bool:
        nonlocal now
        now += 25.0 if now == 0.0 else seconds
        return False

    clock = AwakeClock(lambda: now)
    assert not clock.wait(sleep, 10.0)
    assert now == pytest.approx(35.0)
    event = threading.Event()
    assert not AwakeClock().wait(event.wait, 0.01)
    event.set()
    assert AwakeClock().wait(event.wait, PATIENCE_S)
    assert AwakeClock().wait(event.wait, 0.0)


def test_no_timeout_of_a_loop_passes_while_it_cannot_run(clock: Clock) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        late: list[str] = []
        loop.call_later(ASLEEP_S, late.append, "timer")
        async with asyncio.timeout(ASLEEP_S):
            clock.now += ASLEEP
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not late
        assert loop.time() == began
        while not late:
            clock.now += TICK_S
            await asyncio.sleep(0)
        assert ASLEEP_S <= loop.time() - began <= ASLEEP_S + 2 * TICK_S

    clock.run(test())


def test_time_passes_in_a_loop_that_only_waits() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        began, really = loop.time(), time.monotonic()
        await asyncio.sleep(ASLEEP)
        assert loop.time() - began >= ASLEEP
        assert time.monotonic() - really >= ASLEEP

    awake.run(test())


def test_a_timer_of_real_time_counts_what_its_loop_slept_through(clock: Clock) -> None:
    async def test() -> None:
        heard: list[str] = []
        RealTimer(ASLEEP, heard.append, "due")
        RealTimer(0.0, heard.append, "at once")
        RealTimer(0.0, heard.append, "never").cancel()
        RealTimer(ASLEEP, heard.append, "never").cancel()
        clock.now += ASLEEP
        began = asyncio.get_running_loop().time()
        while "due" not in heard:
            clock.now += TICK_S
            await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() - began < ASLEEP - TICK_S / 2
        assert heard == ["at once", "due"]

    clock.run(test())
