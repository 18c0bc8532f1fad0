"""Fixtures of the launcher's tests: the demo's config, and processes that are counted."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import DEMO_CHECKPOINT, ModelConfig
from tests.launcher.processes import Marked


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
