"""The tests of the kernels, every file in a process of its own, some at once: what takes long on a GPU is compiling.

    python -m bench.kernel_tests [tests/kernels] [--jobs 8] [--seconds N] [--json FILE]

Needs pytest and nothing else of the `test` extra. A test that fails says why at once, so that this is known of a file
that is stopped too, and where a test is that takes longer than half a minute. Ends with 1 if a test fails or a file is
not done in time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.arguments import duration, end_with, json_file, positive
from bench.output import publish

ROOT = Path(__file__).parent.parent
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.failures_at_once")
# not what pyproject.toml adds, which leaves out tests for a GPU
OPTIONS = ("-o", "addopts=", "-o", "faulthandler_timeout=30", "-m", "not slow")


@dataclass(frozen=True)
class FileResult:
    """status: of pytest's process, None if it was stopped. summary: its last line."""

    file: str
    status: int | None
    seconds: float
    summary: str


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernel_tests", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT / "tests" / "kernels"], help="files and folders")
    parser.add_argument("--jobs", type=positive, default=min(8, os.cpu_count() or 1), help="files at once")
    parser.add_argument("--seconds", type=duration, default=600.0, help="in all, after which the rest is stopped")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="append the JSON lines to it")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    files = [file for path in options.paths for file in (sorted(path.glob("test_*.py")) if path.is_dir() else [path])]
    results = []
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for future in as_completed([pool.submit(_run, file, deadline) for file in files]):
                result, output = future.result()
                print(f"== {result.file}\n{output}", flush=True)
                publish("kernel_tests", asdict(result), options.json)
                results.append(result)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)  # those that run are stopped by the same Ctrl-C
            raise
    for result in sorted(results, key=lambda result: result.file):
        print(f"{result.file}: {result.summary}")
    return 0 if results and all(result.status == 0 for result in results) else 1


def _run(file: Path, deadline: float) -> tuple[FileResult, str]:
    began = time.monotonic()
    name = os.path.relpath(file, ROOT)
    seconds = deadline - began
    if seconds <= 0:
        return FileResult(name, None, 0.0, "not begun: the time was up"), ""
    try:
        done = subprocess.run(
            [sys.executable, *PYTEST, *OPTIONS, str(file.resolve())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as stopped:
        output = stopped.stdout or ""
        output = output.decode(errors="replace") if isinstance(output, bytes) else output
        return FileResult(name, None, time.monotonic() - began, "stopped: the time was up"), output
    lines = done.stdout.strip().splitlines()
    return FileResult(name, done.returncode, time.monotonic() - began, lines[-1] if lines else ""), done.stdout


if __name__ == "__main__":
    end_with(main)
