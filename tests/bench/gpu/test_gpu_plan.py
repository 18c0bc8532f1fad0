"""bench/gpu.sh before its first part: what it plans, its options, and what it refuses, with a stand-in for Python."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.gpu.gpu_script import NEEDS_BASH, PARTS, SCRIPT, Run

pytestmark = NEEDS_BASH


def test_a_dry_run_prints_the_plan_and_every_command_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    result = run("--dry-run", "--small", cases="*find_spec*pytest*|*find_spec*diffusers*) exit 1;;")
    assert result.returncode == 0
    assert "ran" not in result.stdout.split()
    assert re.findall(r"^  (\S+) +(?:\d+ s|skipped)", result.stdout, re.MULTILINE) == list(PARTS)
    skipped = {"peers", "offload", "load"}
    assert re.findall(r"^== (\S+) \(at most", result.stdout, re.MULTILINE) == [p for p in PARTS if p not in skipped]
    assert "  peers          skipped: diffusers is not there" in result.stdout
    assert "bench.kernels --size tiny --check-only" in result.stdout
    assert f"--json {tmp_path}/out/results.jsonl" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("preset", "seconds", "parts"),
    [
        ("--first", 330, ["kernel-checks", "step", "image", "kernel-tests"]),
        ("--second", 300, ["throughput", "kernels", "fidelity", "shared-gpu"]),
    ],
)
def test_a_preset_fits_into_its_time(run: Run, preset: str, seconds: int, parts: list[str]) -> None:
    result = run("--dry-run", preset)
    plan = re.findall(r"^  (\S+) +(\d+) s$", result.stdout, re.MULTILINE)
    assert [name for name, _ in plan] == parts
    assert sum(int(slice_s) for _, slice_s in plan) <= seconds - 15
    assert f"parts, and how long each may take, of {seconds} s in all:" in result.stdout
    assert re.findall(r"^== (\S+) \(at most (\d+) s\)", result.stdout, re.MULTILINE) == plan


def test_parts_that_are_cut_short_or_skipped_are_named_beforehand(run: Run) -> None:
    lines = run("--dry-run", "--first", BUDGET_S="140").stdout.splitlines()
    assert "  kernel-checks  60 s" in lines
    (step,) = [line for line in lines if line.startswith("  step ")]
    assert 60 <= int(step.split()[1]) <= 75
    assert step.endswith(" instead of 110 s, if all before it take their time")
    assert "  image          skipped if all before it take their time, else up to 65 s" in lines


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_a_machine_that_cannot_run_it_is_refused(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run("--small", *arguments, cases="*bench.machine*) echo error: no triton >&2; exit 2;;")
    assert (result.returncode, result.stderr) == (2, "error: no triton\n")
    assert ("bench.step" in result.stdout) == ("--dry-run" in arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--unknown"], ["--out"], ["--out="], ["--only"], ["--only", ""], ["--only", " ,"], ["--first", "--second"]),
        *(["--only", "step,nothing"], ["--first", "--only", "step,throughput"]),
    ],
)
def test_bad_options_are_refused(arguments: list[str]) -> None:
    words = ["bash", str(SCRIPT), "--small", "--dry-run", *arguments]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
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
    modules = ["machine", "kernel_tests", "kernels", "shared_gpu", "step", "image", "throughput", "fidelity", "scaling"]
    modules += ["survive", "summary"]
    code = f"import sys\nfor name in {missing}:\n"

    def is_package(module: str) -> bool:
        return (SCRIPT.parent / module).is_dir()

    code += "    sys.modules[name] = None\n"
    code += "".join(f"import bench.{module}{'.__main__' * is_package(module)}\n" for module in modules)
    code += "import tests.engine.kernels.test_gate, tests.engine.rank.test_cuda_graphs\n"
    code += "import tests.engine.model.test_vae_on_devices"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent.parent, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
