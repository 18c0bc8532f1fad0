"""The tests of the kernels, every file in a process of its own, some at once: what takes long on a GPU is compiling.

    python -m bench.kernel_tests [tests/engine/kernels] [-m 'not slow'] [-k WORD] [--jobs 8] [--seconds N] [--json FILE]

Needs pytest and nothing else of the `test` extra. A test that fails says why at once on stderr, so that this is known
of a file that is stopped too; one that crashes, that takes longer than half a minute or that is stopped, where it was.
A file ends with the test in which the GPU is lost. Ends with 1 if a test fails or a file is not done in time.
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

from bench.kernel_tests.failures_at_once import LOST
from bench.measure.arguments import duration, end_with, json_file, positive
from bench.measure.output import publish
from bench.survive import signal_name

_LAST_WORDS_S = 3.0
ROOT = Path(__file__).parent.parent.parent
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.kernel_tests.failures_at_once")
# not what pyproject.toml adds, which leaves out tests for a GPU
OPTIONS = ("-o", "addopts=", "-o", "faulthandler_timeout=30")


@dataclass(frozen=True)
class FileResult:
    """status: of pytest's process, None if it was stopped. summary: its last line."""

    file: str
    status: int | None
    seconds: float
    summary: str


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernel_tests", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[ROOT / "tests" / "engine" / "kernels"], help="files and folders"
    )
    parser.add_argument("-m", default="not slow", dest="marked", help="as pytest's (not slow)")
    parser.add_argument("-k", default="", dest="named", help="as pytest's")
    parser.add_argument("--jobs", type=positive, default=min(8, os.cpu_count() or 1), help="files at once")
    parser.add_argument("--seconds", type=duration, default=600.0, help="in all, after which the rest is stopped")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="append the JSON lines to it")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    files = [file for path in options.paths for file in (sorted(path.rglob("test_*.py")) if path.is_dir() else [path])]
    chosen = ("-m", options.marked, "-k", options.named)
    results = []
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for future in as_completed([pool.submit(_run, file, chosen, deadline) for file in files]):
                result, output = future.result()
                print(f"== {result.file}\n{output}", flush=True)
                publish("kernel_tests", asdict(result), options.json)
                results.append(result)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)  # running ones are stopped by the same Ctrl-C
            raise
    for result in sorted(results, key=lambda result: result.file):
        print(f"{result.file}: {result.summary}")
    return 0 if results and all(result.status == 0 for result in results) else 1


def _run(file: Path, chosen: Sequence[str], deadline: float) -> tuple[FileResult, str]:
    began = time.monotonic()
    name = os.path.relpath(file, ROOT)
    left = deadline - began
    if left <= 0:
        return FileResult(name, None, 0.0, "not begun: the time was up"), ""
    status: int | None
    with subprocess.Popen(
        [sys.executable, *PYTEST, *OPTIONS, *chosen, str(file.resolve())],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # none is needed, and importing them takes seconds
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # stderr is ours
        text=True,
        errors="replace",
    ) as process:
        try:
            output, _ = process.communicate(timeout=left)
            status, summary = process.returncode, _summary(process.returncode, output)
        except subprocess.TimeoutExpired:
            output, status, summary = _stop(process), None, "stopped: the time was up"
        except BaseException:
            process.kill()
            raise
    return FileResult(name, status, time.monotonic() - began, summary), output


def _stop(process: subprocess.Popen[str]) -> str:
    """Have it say where it is, end it, and return what it had printed."""
    process.terminate()
    try:
        output, _ = process.communicate(timeout=_LAST_WORDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return output


def _summary(status: int, output: str) -> str:
    """Of a file's process: how it ended, or pytest's last lines, from how many tests passed on."""
    if status < 0:
        return f"crashed: {signal_name(-status)}"
    lines = output.strip().splitlines() or [""]
    return "; ".join(lines[-2:]) if lines[-1].startswith(LOST) else lines[-1]


if __name__ == "__main__":
    end_with(main)
