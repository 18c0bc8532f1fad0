"""A clock of this process that tests put forward."""

from __future__ import annotations

import asyncio
import time

import pytest

from launcher import awake
from launcher.awake import AwakeClock, AwakeLoop

LONG_S = 3600.0


class FakeClock:
    """Goes as `time.monotonic` does, in whose place it is, and moreover as a test says.

    To be made before the event loop that is to go by it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real, self._ahead_s = time.monotonic, 0.0
        monkeypatch.setattr(time, "monotonic", self)
        for kind in (AwakeClock, AwakeLoop):
            monkeypatch.setattr(kind.__init__, "__defaults__", (self,))

    def __call__(self) -> float:
        """Return seconds."""
        return self._real() + self._ahead_s

    async def pause(self) -> None:
        """Stop this process for an hour, for all that it can see, and let it look around."""
        self.jump(LONG_S)
        await asyncio.sleep(0)
        await asyncio.sleep(1.1)  # the front-end looks at the clock every second

    def jump(self, seconds: float) -> None:
        """Let time pass in which this process does not run."""
        self._ahead_s += seconds

    async def forward(self, seconds: float) -> None:
        """Let time pass in which this process runs, and no faster than other threads of it can follow."""
        due = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < due:
            self._ahead_s += awake.ASLEEP_S / 4
            await asyncio.sleep(0.01)
