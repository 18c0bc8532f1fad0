"""What the tests of the benchmarks of the whole engine share."""

from __future__ import annotations

import pytest

from bench.engines.peer import Peer
from bench.measure import timing


@pytest.fixture
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_CEILING_REPEATS", 2)  # what the device reaches is nothing to these tests


@pytest.fixture
def eager_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peer, "modes", ("eager",))  # compiling takes a minute
