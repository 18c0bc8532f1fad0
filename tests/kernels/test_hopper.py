"""Every kernel compiles for an H200, keeps its values in registers and reads 16 bytes at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = 227 * 1024  # what a program may have of an H200's


def test_kernels_compile_for_hopper_without_spills_and_with_wide_loads() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.hopper"]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=root, env=environment)
    assert result.returncode == 0, result.stderr
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(kernels) >= 12
    for kernel in kernels:
        assert kernel["spills"] == 0, kernel
        assert kernel["wide_loads"] > 0, kernel
        assert kernel["shared"] <= SHARED_MEMORY, kernel
        assert ("attention" in kernel["name"]) == (kernel["wgmma"] > 0), kernel
