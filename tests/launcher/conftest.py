"""Fixtures of the launcher's tests: the demo's config, and processes that are counted."""

from __future__ import annotations

import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import DEMO_CHECKPOINT, ModelConfig
from tests.launcher.processes import Marked


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> Iterator[None]:
    """Let child processes be interrupted and hung up on, also where these tests themselves run in the background.

    `nohup` ignores SIGHUP, and a shell without job control SIGINT for what it starts with `&`. What is ignored is
    inherited; a handler is not, and this one ignores the signal as well.
    """
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def demo() -> ModelConfig:
    return ModelConfig.from_folder(DEMO_CHECKPOINT)


@pytest.fixture
def run_folder() -> Iterator[Path]:
    # tmp_path may be too long for the name of a unix socket
    with tempfile.TemporaryDirectory(prefix="krea2-test-") as folder:
        yield Path(folder)


@pytest.fixture
def marked(run_folder: Path) -> Iterator[Marked]:
    """An environment for child processes in which they can be counted, and so can the folders they leave behind."""
    environment = dict(os.environ) | {"TMPDIR": str(run_folder), "KREA2_TEST_MARK": uuid.uuid4().hex}
    environment.pop("OMP_NUM_THREADS", None)
    marked = Marked(environment, run_folder)
    yield marked
    marked.kill()
