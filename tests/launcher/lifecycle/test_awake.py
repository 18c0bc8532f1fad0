"""A clock that stands still while its reader does, and what keeps time by it."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from launcher import awake
from launcher.awake import AwakeClock, RealTimer
from tests.launcher.processes import PATIENCE_S

ASLEEP_S, TICK_S = 0.4, 0.05
ASLEEP = 1.5 * ASLEEP_S


@pytest.fixture(autouse=True)
def light_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.awake.ASLEEP_S", ASLEEP_S)
    monkeypatch.setattr("launcher.awake.TICK_S", TICK_S)


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


def test_no_timeout_of_a_loop_passes_while_it_cannot_run() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        began, really = loop.time(), time.monotonic()
        late: list[str] = []
        loop.call_later(ASLEEP_S, late.append, "timer")
        async with asyncio.timeout(ASLEEP_S):
            time.sleep(ASLEEP)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not late
        assert time.monotonic() - really >= ASLEEP
        assert loop.time() - began < ASLEEP_S
        while not late:
            await asyncio.sleep(0.01)
        assert loop.time() - began >= ASLEEP_S

    awake.run(test())


def test_time_passes_in_a_loop_that_only_waits() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        began, really = loop.time(), time.monotonic()
        await asyncio.sleep(ASLEEP)
        assert loop.time() - began >= ASLEEP
        assert time.monotonic() - really >= ASLEEP

    awake.run(test())


def test_a_timer_of_real_time_counts_what_its_loop_slept_through() -> None:
    async def test() -> None:
        heard: list[str] = []
        RealTimer(ASLEEP, heard.append, "due")
        RealTimer(0.0, heard.append, "at once")
        RealTimer(0.0, heard.append, "never").cancel()
        RealTimer(ASLEEP, heard.append, "never").cancel()
        time.sleep(ASLEEP)
        began = asyncio.get_running_loop().time()
        while "due" not in heard:
            await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - began <= ASLEEP_S + TICK_S
        assert heard == ["at once", "due"]

    awake.run(test())
