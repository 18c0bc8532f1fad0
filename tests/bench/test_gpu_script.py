"""bench/gpu.sh: how it shares out its time and what it makes of failures, with a stand-in for Python; and, slowly, all
of it at tiny sizes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "bench" / "gpu.sh"
PARTS = [
    *("kernel-tests", "shared-gpu", "step", "image-bf16", "image-fp8", "kernels", "throughput", "fidelity"),
    *("peers", "scaling", "image-2048", "offload", "load"),
]

pytestmark = pytest.mark.skipif(
    not shutil.which("timeout") or not Path("/dev/fd").exists(), reason="needs bash and timeout, as on Linux"
)
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the script with Python being a shell script whose cases are `cases`; results in `out`."""

    def start(*arguments: str, cases: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        stub = tmp_path / "python"
        stub.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\necho ran "$@"\n')
        stub.chmod(0o700)
        return subprocess.run(
            ["bash", str(SCRIPT), "--out", str(tmp_path / "out"), *arguments],
            env={**os.environ, "PYTHON": str(stub), **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return start


def outcomes(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The summary at the end of the output, without what a CPU has not."""
    lines = result.stdout.splitlines()
    summary = [line.split(maxsplit=1) for line in lines[-len(PARTS) - 2 :]]
    assert ["symmetric", "skipped: a CPU has no symmetric memory"] in [
        [word.strip() for word in line] for line in summary
    ]
    return {words[0]: words[1] for words in summary if words[0] in PARTS}


def test_a_dry_run_prints_every_command_in_order_and_runs_none(run: Run, tmp_path: Path) -> None:
    result = run("--dry-run", "--small")
    assert result.returncode == 0
    assert "ran" not in result.stdout.split()
    assert list(outcomes(result)) == PARTS
    assert set(outcomes(result).values()) == {"not run"}
    assert f"--json {tmp_path}/out/results.jsonl" in result.stdout
    assert "@S" not in result.stdout
    assert "of 540 s" in result.stdout


@pytest.mark.parametrize(
    ("preset", "seconds", "parts"),
    [
        ("--first", 330, ["kernel-checks", "step", "image", "kernel-tests"]),
        ("--second", 300, ["throughput", "kernels", "fidelity", "shared-gpu"]),
    ],
)
def test_a_preset_fits_into_its_time(run: Run, preset: str, seconds: int, parts: list[str]) -> None:
    result = run("--dry-run", preset)
    told = re.findall(r"^== (\S+) \(at most (\d+) s\)", result.stdout, re.MULTILINE)
    assert [name for name, _ in told] == parts
    assert sum(int(slice_s) for _, slice_s in told) <= seconds - 15
    assert f"of {seconds} s" in result.stdout


def test_parts_run_in_order_and_the_log_has_all_output(run: Run, tmp_path: Path) -> None:
    result = run("--small")
    assert result.returncode == 0, result.stdout
    assert list(outcomes(result)) == PARTS
    assert all(outcome.startswith("ok, ") for outcome in outcomes(result).values())
    assert (tmp_path / "out" / "results.log").read_text() == result.stdout
    assert "ran -m bench.shared_gpu --modes tp2,sp2,cfg,tp2xsp2 --seconds 70" in result.stdout


def test_a_part_that_fails_stops_no_other_and_is_told(run: Run) -> None:
    result = run("--small", cases="*bench.step*) echo boom >&2; exit 3;;")
    assert result.returncode == 1
    assert "boom" in result.stdout
    assert outcomes(result).pop("step").startswith("FAILED: exit status 3")
    assert sum(outcome.startswith("ok, ") for outcome in outcomes(result).values()) == len(PARTS) - 1


def test_a_part_that_hangs_is_stopped_and_what_no_longer_fits_is_skipped(run: Run) -> None:
    only = ("--only", "step,image-bf16,image-2048")
    result = run("--small", *only, cases="*bench.step*) exec sleep 600;;", BUDGET_S="12", LEAST_S="6")
    assert result.returncode == 1
    told = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[-4:-1])
    assert told["step"].startswith("FAILED: not done after ")
    assert told["image-bf16"].startswith("skipped: ")
    assert told["image-2048"].endswith("of 12 s are left")


def test_without_pytest_and_diffusers_their_parts_are_replaced_and_skipped(run: Run) -> None:
    result = run("--small", cases="*find_spec*pytest*|*find_spec*diffusers*) exit 1;;")
    assert result.returncode == 0
    assert outcomes(result)["peers"].startswith("skipped: diffusers is not there")
    assert "ran -m bench.kernels --size tiny --check-only" in result.stdout


def test_a_machine_that_cannot_run_it_is_refused(run: Run) -> None:
    result = run("--small", cases="*bench.machine*) echo error: no triton >&2; exit 2;;")
    assert result.returncode == 2
    assert "error: no triton" in result.stdout
    assert "bench.step" not in result.stdout


def test_wheels_are_used_and_installed_nowhere(run: Run, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "some.whl").touch()
    result = run("--small", "--only", "step", cases='*bench.step*) echo "PATHS $PYTHONPATH";;', WHEELS=str(wheels))
    assert result.returncode == 0
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("ran -m pip")]
    assert "--no-index --no-deps --target /tmp/" in line.replace(os.environ.get("TMPDIR", "/tmp"), "/tmp")
    target = line.split("--target ")[1].split()[0]
    assert line.endswith(f"{wheels}/some.whl")
    assert any(line.startswith("PATHS ") and line.endswith(f":{target}") for line in result.stdout.splitlines())
    assert not Path(target).exists()
    assert run("--small", cases="*pip*) exit 1;;", WHEELS=str(wheels)).returncode == 2


def test_when_it_is_stopped_its_part_is_too(run: Run, tmp_path: Path) -> None:
    stub = tmp_path / "python"
    pid_file = tmp_path / "pid"
    stub.write_text(f'#!/bin/sh\ncase "$*" in *bench.step*) echo $$ > {pid_file}; exec sleep 600;; esac\n')
    stub.chmod(0o700)
    script = subprocess.Popen(
        ["bash", str(SCRIPT), "--small", "--only", "step", "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHON": str(stub)},
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (pid_file.exists() and pid_file.read_text().strip()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        script.terminate()
        assert script.wait(timeout=120) == 143
    finally:
        script.kill()
        script.wait()
    pid = int(pid_file.read_text())
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may go while it is looked at
        while "sleep" in Path(f"/proc/{pid}/cmdline").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("arguments", [["--unknown"], ["--out"], ["--only"], ["--only", "step,nothing"]])
def test_bad_options_are_refused(arguments: list[str]) -> None:
    result = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")


def test_a_bad_budget_is_refused(run: Run) -> None:
    assert "BUDGET_S and LEAST_S must be whole numbers" in run("--small", BUDGET_S="soon").stderr


def test_help_is_the_head_of_the_script() -> None:
    result = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0
    assert result.stdout.startswith("Everything that is worth knowing")
    assert "BUDGET_S" in result.stdout
    assert "pipefail" not in result.stdout


def test_what_it_runs_needs_nothing_of_the_server() -> None:
    missing = ["zmq", "msgspec", "fastapi", "uvicorn", "prometheus_client", "click", "tqdm", "launcher", "gguf"]
    missing += ["hypothesis", "PIL", "diffusers", "transformers", "tokenizers"]
    modules = "machine", "kernel_tests", "kernels", "shared_gpu", "step", "image", "throughput", "fidelity", "scaling"
    code = f"import sys\nfor name in {missing}:\n"
    code += f"    sys.modules[name] = None\nimport {', '.join(f'bench.{module}' for module in modules)}"
    code += "\nimport tests.kernels.test_gate, tests.test_graphs, tests.model.test_vae_on_devices"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent.parent, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_everything_runs_at_tiny_sizes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "BUDGET_S": "1800"}
    result = subprocess.run(
        ["bash", str(SCRIPT), "--small"], env=environment, capture_output=True, text=True, timeout=1900
    )
    assert result.returncode == 0, result.stdout[-4000:]
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["benchmark"] for line in lines} >= {
        *("shared_gpu", "step", "image", "kernel", "throughput", "fidelity_demo", "fidelity_blocks", "scaling")
    }
