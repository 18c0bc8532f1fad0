"""Runs bench/gpu.sh with a stand-in for Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "bench" / "gpu.sh"
PARTS = [
    *("kernel-tests", "shared-gpu", "step", "image", "kernels", "throughput", "fidelity", "peers", "scaling"),
    *("image-2048", "unseen-length", "offload", "load"),
]
Run = Callable[..., subprocess.CompletedProcess[str]]
NEEDS_BASH = pytest.mark.skipif(
    not shutil.which("timeout") or not Path("/dev/fd").exists(), reason="needs bash and timeout, as on Linux"
)
# A part leaves a line of results, as a benchmark does; the table at the end is the real one.
_STUB = """#!/bin/sh
case "$*" in
{cases}
*bench.summary*) exec {python} "$@";;
esac
echo ran "$@"
while [ $# -gt 0 ]; do
    [ "$1" != --json ] || echo '{{"benchmark": "stub"}}' >> "$2"
    shift
done
"""


def write_stub(folder: Path, cases: str = "", *, otherwise: str | None = None) -> Path:
    """A shell script in place of Python, which does as `cases` say of its arguments, and else pretends, or does what
    `otherwise` says."""
    stub = folder / "python"
    text = _STUB.format(cases=cases, python=sys.executable)
    stub.write_text(text if otherwise is None else f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\n{otherwise}\n')
    stub.chmod(0o700)
    return stub


def run_script(folder: Path, stub: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """With its results in `folder`/out."""
    return subprocess.run(
        ["bash", str(SCRIPT), "--out", str(folder / "out"), *arguments],
        env={**os.environ, "PYTHON": str(stub), **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )


def outcomes(stdout: str) -> dict[str, str]:
    """By part, from the table at the end, with the reason if it was skipped."""
    lines = stdout.splitlines()
    header = max(index for index, line in enumerate(lines) if line.startswith("part "))
    first, second, third = (lines[header].index(column) for column in ("outcome", "key figure", "compared with"))
    found = {}
    for line in lines[header + 2 : -1]:
        if line.startswith("error: "):
            break
        if name := line[:first].strip():
            outcome, figure = line[first:second].strip(), line[second:third].strip()
            found[name] = f"skipped: {figure}" if outcome == "skipped" else outcome
    return found
