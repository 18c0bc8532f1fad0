"""python -m bench.survive: benchmarks whose process dies go on with what is left, and come to an end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import indent

import pytest

from bench.measure.lost import DeviceLost, is_lost, raise_if_lost
from tests.launcher.processes import PATIENCE_S, SLOW_START

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[3]
# Cases 0 to 4, each of which does what a word says; a rotten one dies while it gets ready for a case.
BENCHMARK = """
import os, signal, sys
from bench.measure.lost import LOST
from bench.survive import Attempts
attempts = Attempts()
for number, word in enumerate(sys.argv[1].split(",")):
    if not attempts.is_new(f"case {number}") or not attempts.prepare(f"what case {number} needs"):
        continue
    if word == "rotten":
        os._exit(LOST)
    attempts.begin(f"case {number}")
    if word == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "loses":
        os._exit(LOST)
    print("done:", number, *sys.argv[2:], flush=True)
    if word == "fails":
        sys.exit(1)
"""


@pytest.fixture
def survive(tmp_path: Path) -> Run:
    def run(*words: str, module: str = BENCHMARK) -> subprocess.CompletedProcess[str]:
        (tmp_path / "some.py").write_text(module)
        return subprocess.run(
            [sys.executable, "-m", "bench.survive", "some", *words],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def done(result: subprocess.CompletedProcess[str]) -> list[int]:
    return [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("done: ")]


def test_what_is_left_runs_in_a_new_process_each_time_and_the_first_failure_is_named(survive: Run) -> None:
    result = survive("good,crashes,loses,rotten,good")
    assert done(result) == [0, 4]
    assert result.returncode == 1
    told = [line for line in result.stderr.splitlines() if line.startswith("FAILED: some ")]
    assert told == [
        "FAILED: some was ended by SIGSEGV at: case 1. What is left runs in a new process.",
        "FAILED: some lost its GPU at: case 2. What is left runs in a new process.",
        "FAILED: some lost its GPU at: what case 3 needs. What is left runs in a new process.",
    ]
    assert "Fatal Python error: Segmentation fault" in result.stderr


def test_a_process_that_ends_by_itself_is_the_last(survive: Run) -> None:
    result = survive("good,fails,good")
    assert (result.returncode, done(result), result.stderr) == (1, [0, 1], "")
    assert survive("good").returncode == 0


def test_one_that_dies_before_anything_is_not_tried_again(survive: Run) -> None:
    result = survive("x", module="import os, signal\nos.kill(os.getpid(), signal.SIGABRT)")
    assert result.returncode == 1
    assert result.stderr.endswith("FAILED: some was ended by SIGABRT, and has said of nothing new that it began\n")


def test_one_that_begins_the_same_over_and_over_comes_to_an_end(survive: Run) -> None:
    module = """
import os, signal
with open(os.environ["KREA2_BENCH_ATTEMPTS"], "a") as file:
    file.write("begun x\\n")
os.kill(os.getpid(), signal.SIGSEGV)
"""
    result = survive(module=module)
    assert result.returncode == 1
    assert result.stderr.endswith("and has said of nothing new that it began\n")


def test_the_seconds_count_for_all_processes(survive: Run) -> None:
    result = survive("crashes,good", "--seconds", "0")
    assert done(result) == []
    assert "FAILED: some was ended by SIGSEGV at: case 0. The time is up." in result.stderr
    result = survive("crashes,good", "--seconds", "500")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("done: 1 --seconds ")]
    assert 0 < int(line.split()[-1]) < 500


@pytest.mark.parametrize("late", [False, True])
def test_a_stopped_one_is_not_gone_on_with(tmp_path: Path, late: bool) -> None:
    module = "import time\nprint('here', flush=True)\ntime.sleep(600)\n"
    (tmp_path / "some.py").write_text(module)
    if late:
        (tmp_path / "sitecustomize.py").write_text(
            f"import sys\nif 'bench.survive' in sys.orig_argv:\n{indent(SLOW_START, '    ')}"
        )
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.survive", "some"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGTERM)  # it alone: what it runs is stopped a second later
    assert process.wait(PATIENCE_S) == 130
    assert process.stdout.read() == "", "its end is closed, so nothing runs any more"
    process.stdout.close()


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("Triton Error [CUDA]: misaligned address", True),
        ("CUDA error: device-side assert triggered", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("CUDA error: operation failed due to a previous error during capture", False),
        ("an illegal memory access was encountered", False),
    ],
)
def test_which_errors_lose_a_gpu(text: str, lost: bool) -> None:
    assert is_lost(RuntimeError(text)) is lost


def test_what_is_behind_an_error_counts() -> None:
    try:
        try:
            raise RuntimeError("CUDA error: unspecified launch failure")
        except RuntimeError as cause:
            raise ValueError("no image") from cause
    except ValueError as error:
        with pytest.raises(DeviceLost, match="ValueError: no image"):
            raise_if_lost(error)
