"""What the tests of bench/gpu.sh share."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.bench.gpu.gpu_script import Run, run_script, write_stub


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the script with Python being a shell script whose cases are `cases`; results in `out`."""

    def start(*arguments: str, cases: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return run_script(tmp_path, write_stub(tmp_path, cases), *arguments, **environment)

    return start
