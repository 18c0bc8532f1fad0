"""Every kernel compiles for an H200, keeps its values in registers and reads 16 bytes at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.timeout(1800)  # tens of kernels are compiled, and other processes may want the cores

SHARED_MEMORY = 227 * 1024  # what a program may have of an H200's


def test_kernels_compile_for_hopper_without_spills_and_with_wide_loads() -> None:
    kernels = _lines_of("tests.engine.kernels.attention.hopper")
    assert len(kernels) >= 12
    for kernel in kernels:
        assert kernel["spills"] == 0, kernel
        assert kernel["wide_loads"] > 0, kernel
        assert kernel["shared"] <= SHARED_MEMORY, kernel
        assert ("attention" in kernel["name"]) == (kernel["wgmma"] > 0), kernel


def test_no_size_of_a_request_compiles_anything_anew() -> None:
    rounds = _lines_of("tests.engine.kernels.launches")
    for kind in ("step", "prompt", "image"):
        first, *others = (one["compiled"] for one in rounds if one["kind"] == kind)
        assert first > 0
        assert others
        assert set(others) == {first}, rounds


def _lines_of(module: str) -> list[dict[str, Any]]:
    """The JSON lines that a module prints in a process without Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[4]
    command = [sys.executable, "-m", module]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=root, env=environment)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]
