"""A gate whose filter has faults, and a clock that can be turned on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from launcher.filters.gate import Gate
from launcher.filters.spec import read_specs
from tests.launcher.filters.stand_in import STAND_IN
from tests.launcher.processes import PATIENCE_S

TIMEOUT_S = 600.0  # of a check, half of which is for its first try


class TurnedLoop(asyncio.SelectorEventLoop):
    """A loop whose time can be turned on."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=TurnedLoop) as runner:
        runner.run(main)


def turn(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TurnedLoop)
    loop.ahead_s += seconds


async def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def filters() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "_filter" in each.cmdline()]


@asynccontextmanager
async def gate_of(
    faults: Path, *, options: str = "", fail_open: bool = False, more: Sequence[str] = ()
) -> AsyncIterator[tuple[Gate, list[tuple[str, str]]]]:
    """A gate with a filter that has faults, and the reasons of all that have failed."""
    failures: list[tuple[str, str]] = []
    text = f"{STAND_IN},name=mine,timeout={TIMEOUT_S:g},faults={faults}{options}"
    gate = Gate(
        read_specs([text, *more]),
        fail_open=fail_open,
        on_failure=lambda label, reason: failures.append((label, reason)),
    )
    await gate.start()
    try:
        yield gate, failures
    finally:
        gate.close()
        assert not filters()
