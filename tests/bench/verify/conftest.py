"""What the tests of bench.verify share."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.verify import checks
from bench.verify.subject.models import Model, find_models


@pytest.fixture(scope="session")
def model(raw: Path) -> Model:
    (found,) = find_models([str(raw)])
    return found


@pytest.fixture
def no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than a run, and there is nothing that needs the memory."""
    monkeypatch.setattr(checks, "release", lambda _: None)
