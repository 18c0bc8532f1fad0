"""bench/gpu.sh as it runs its parts: what it makes of failures, with a stand-in for Python; and, slowly, all of it at
tiny sizes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.gpu.gpu_script import NEEDS_BASH, PARTS, SCRIPT, Run, outcomes, write_stub

pytestmark = NEEDS_BASH


@pytest.mark.parametrize("only", ["--only=step,image", "--only= image, step", "--only=step image,"])
def test_parts_may_be_named_with_blanks(run: Run, only: str) -> None:
    result = run("--small", only)
    assert result.returncode == 0
    assert list(outcomes(result.stdout)) == ["step", "image"]


def test_parts_run_in_order_and_the_log_has_all_output(run: Run, tmp_path: Path) -> None:
    result = run("--small")
    assert result.returncode == 0, result.stdout
    found = outcomes(result.stdout)
    assert list(found) == PARTS
    assert all(outcome.startswith("ok, ") for outcome in found.values())
    assert (tmp_path / "out" / "results.log").read_text() == result.stdout
    assert "ran -m bench.survive bench.shared_gpu --modes tp2,sp2,cfg,tp2xsp2 --seconds 70" in result.stdout


def test_a_part_that_fails_stops_no_other_and_is_told(run: Run) -> None:
    result = run("--small", cases="*bench.step*) echo boom >&2; exit 3;;")
    assert result.returncode == 1
    assert "boom" in result.stdout
    found = outcomes(result.stdout)
    assert found.pop("step").startswith("FAILED: exit status 3")
    assert sum(outcome.startswith("ok, ") for outcome in found.values()) == len(PARTS) - 1


def test_a_part_without_a_number_is_not_ok(run: Run) -> None:
    result = run("--small", "--only", "step,image,kernels", cases="*bench.step*|*bench.kernels*) exit 0;;")
    assert result.returncode == 1
    found = outcomes(result.stdout)
    assert [found[part].split(",")[0] for part in ("step", "image", "kernels")] == [
        *("FAILED: no number", "ok", "FAILED: no number")
    ]


def test_where_the_table_fails_outcomes_are_there_nevertheless(run: Run) -> None:
    result = run("--small", "--only", "step,image", cases="*bench.step*) exit 0;;\n*bench.summary*) exit 1;;")
    assert result.returncode == 1
    told = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[-3:-1])
    assert told["step"].startswith("FAILED: no number, ")
    assert told["image"].startswith("ok, ")


def test_figures_are_of_this_run_and_of_the_part_that_made_them(run: Run, tmp_path: Path) -> None:
    old = tmp_path / "out" / "results.jsonl"
    old.parent.mkdir()
    old.write_text('{"benchmark": "earlier"}\n')
    result = run("--small", "--only", "step,kernels", cases="*bench.kernels*) echo '{}' >> " + f"{old}; exit 1;;")
    (step,) = [line for line in result.stdout.splitlines() if line.startswith("step ")]
    (kernels,) = [line for line in result.stdout.splitlines() if line.startswith("kernels ")]
    assert step.endswith("  stub: 1 results")
    assert kernels.endswith("  1 damaged lines")


def test_a_part_that_hangs_is_stopped_and_what_no_longer_fits_is_skipped(run: Run, tmp_path: Path) -> None:
    """`timeout` is told by its own timer's signal that the time is up, once the part hangs; the script's clock goes on
    by 300 s with each part."""
    (tmp_path / "hangs.py").write_text(
        "import os, signal, time\nfrom bench.measure.arguments import end_with\n"
        "def wait_for_nothing():\n    os.kill(int(os.environ['TIMEOUT']), signal.SIGALRM)\n    time.sleep(600)\n"
        "    return 0\nend_with(wait_for_nothing)\n"
    )
    hang = f"*bench.step*) TIMEOUT=$PPID exec {sys.executable} -m bench.survive hangs;;"
    clock = 'wait() { builtin wait "$@"; set -- $?; SECONDS=$((SECONDS + 300)); return "$1"; }\n'
    (tmp_path / "clock").write_text(clock)
    environment = {"BUDGET_S": "300", "PYTHONPATH": str(tmp_path), "BASH_ENV": str(tmp_path / "clock")}
    result = run("--small", "--only", "step,image,image-2048", cases=hang, **environment)
    assert result.returncode == 1
    assert "in wait_for_nothing" in result.stdout, "where it was when it was stopped"
    told = outcomes(result.stdout)
    assert told["step"].startswith("FAILED: not done after 50 s, 3")
    assert told["image"] == told["image-2048"] == "skipped: 0 s of 300 s are left"


def test_without_a_number_at_all_it_is_a_failure(run: Run) -> None:
    result = run("--small", "--first", BUDGET_S="5")
    assert result.returncode == 1
    assert all(re.fullmatch(r"skipped: \d s of 5 s are left", each) for each in outcomes(result.stdout).values())
    assert outcomes(result.stdout)
    assert "error: nothing was measured: no part has left a number" in result.stdout


def test_without_pytest_and_diffusers_their_parts_are_replaced_and_skipped(run: Run) -> None:
    result = run("--small", cases="*find_spec*pytest*|*find_spec*diffusers*) exit 1;;")
    assert result.returncode == 0
    assert outcomes(result.stdout)["peers"].startswith("skipped: diffusers is not there")
    assert "ran -m bench.survive bench.kernels --size tiny --check-only" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_when_it_is_stopped_its_part_is_too_and_the_table_is_there(tmp_path: Path, number: signal.Signals) -> None:
    pid_file = tmp_path / "pid"
    stub = write_stub(tmp_path, f"*bench.image*) echo $$ > {pid_file}; exec sleep 600;;")
    default = (
        "import os, signal, sys; signal.signal(int(sys.argv[1]), signal.SIG_DFL); os.execvp(sys.argv[2], sys.argv[2:])"
    )
    words = ["bash", str(SCRIPT), "--small", "--only", "step,image,kernels", "--out", str(tmp_path / "out")]
    script = subprocess.Popen(
        [sys.executable, "-c", default, str(int(number)), *words],
        env={**os.environ, "PYTHON": str(stub)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (pid_file.exists() and pid_file.read_text().strip()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(script.pid, number)  # as a terminal does
        output, _ = script.communicate(timeout=120)
    finally:
        script.kill()
        script.wait()
    assert script.returncode == 128 + number
    assert f"== stopped by {number.name}" in output
    found = outcomes(output)
    assert list(found) == ["step", "image"]
    assert found["step"].startswith("ok, ")
    assert found["image"].startswith("stopped after ")
    assert output.endswith(f"results: {tmp_path}/out/results.jsonl\n")
    assert (tmp_path / "out" / "results.log").read_text() == output
    pid = int(pid_file.read_text())
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may go while it is looked at
        while "sleep" in Path(f"/proc/{pid}/cmdline").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_everything_runs_at_tiny_sizes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "BUDGET_S": "1800"}
    result = subprocess.run(
        ["bash", str(SCRIPT), "--small"], env=environment, capture_output=True, text=True, timeout=1900
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert "that this table cannot read" not in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["benchmark"] for line in lines} >= {
        *("shared_gpu", "step", "image", "kernel", "throughput", "fidelity_demo", "fidelity_blocks", "scaling")
    }
