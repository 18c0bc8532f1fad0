"""bench/gpu.sh: how it shares out its time and what it makes of failures, with a stand-in for Python; and, slowly, all
of it at tiny sizes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.gpu.gpu_script import SCRIPT, outcomes, run_script, write_stub

PARTS = [
    *("kernel-tests", "shared-gpu", "step", "image", "kernels", "throughput", "fidelity", "peers", "scaling"),
    *("image-2048", "unseen-length", "offload", "load"),
]

pytestmark = pytest.mark.skipif(
    not shutil.which("timeout") or not Path("/dev/fd").exists(), reason="needs bash and timeout, as on Linux"
)
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the script with Python being a shell script whose cases are `cases`; results in `out`."""

    def start(*arguments: str, cases: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return run_script(tmp_path, write_stub(tmp_path, cases), *arguments, **environment)

    return start


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
    (tmp_path / "hangs.py").write_text(
        "import time\nfrom bench.measure.arguments import end_with\n"
        "def wait_for_nothing():\n    time.sleep(600)\n    return 0\nend_with(wait_for_nothing)\n"
    )
    hang = f"*bench.step*) exec {sys.executable} -m bench.survive hangs;;"
    environment = {"BUDGET_S": "7", "LEAST_S": "5", "PYTHONPATH": str(tmp_path)}
    result = run("--small", "--only", "step,image,image-2048", cases=hang, **environment)
    assert result.returncode == 1
    assert "in wait_for_nothing" in result.stdout, "where it was when it was stopped"
    told = outcomes(result.stdout)
    assert told["step"].startswith("FAILED: not done after ")
    assert told["image"].startswith("skipped: ")
    assert told["image-2048"].endswith("of 7 s are left")


def test_what_triton_compiled_is_kept_and_begun_with(run: Run, tmp_path: Path) -> None:
    compile_one = '*bench.step*) ls "$TRITON_CACHE_DIR"; echo {} >> "$TRITON_CACHE_DIR/$NEW"; exit 1;;'
    step = ("--only", "step")
    run(*step, cases=compile_one, NEW="first")
    file = tmp_path / "out" / "triton-cache.tar.gz"
    result = run(*step, cases=compile_one, NEW="second", TRITON_CACHE=str(file))
    assert "\nfirst\n" in result.stdout
    with tarfile.open(file) as archive:
        assert {"./first", "./second"} <= set(archive.getnames())
    file.write_text("damaged")
    result = run(*step, cases=compile_one, NEW="third", TRITON_CACHE=str(file))
    assert f"error: TRITON_CACHE: {file} cannot be unpacked, so kernels are compiled anew" in result.stdout
    assert "== step: FAILED: exit status 1" in result.stdout, "it runs without"


def test_a_disk_that_is_full_at_the_end_is_told(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "triton-cache.tar.gz.new").symlink_to("/dev/full")
    result = run("--only", "load", cases='*bench.load*) echo {} >> "$TRITON_CACHE_DIR/kernel";;')
    assert result.returncode == 1
    assert "No space left on device" in result.stdout
    assert f"error: what Triton compiled cannot be kept in {out}/triton-cache.tar.gz" in result.stdout


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


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_a_machine_that_cannot_run_it_is_refused(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run("--small", *arguments, cases="*bench.machine*) echo error: no triton >&2; exit 2;;")
    assert (result.returncode, result.stderr) == (2, "error: no triton\n")
    assert ("bench.step" in result.stdout) == ("--dry-run" in arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("in_the_way", "said"),
    [
        ("out", "the folder {}/out cannot be made: File exists"),
        ("out/results.jsonl/x", "{}/out/results.jsonl cannot be written: Is a directory"),
        ("out/results.log/x", "{}/out/results.log cannot be written: Is a directory"),
    ],
)
def test_files_that_cannot_be_written_are_told_before_the_first_part(
    run: Run, tmp_path: Path, in_the_way: str, said: str
) -> None:
    (tmp_path / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / in_the_way).touch()
    result = run("--small")
    assert (result.returncode, result.stderr) == (2, f"error: {said.format(tmp_path)}\n")
    assert "== " not in result.stdout


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock")
def test_a_folder_into_which_another_run_writes_is_refused(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        result = run("--small")
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
        assert result.stderr.startswith(f"error: another run writes into {out}")
        assert not list(out.iterdir())
    finally:
        os.close(descriptor)
    assert run("--small", "--only", "step").returncode == 0


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


def test_paths_are_those_of_the_folder_it_is_started_in(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_stub(tmp_path)
    environment = {**os.environ, "PYTHON": "./python", "WHEELS": "wheels", "OUT": "out"}
    words = ["bash", str(SCRIPT), "--small", "--only", "step"]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/wheels/*.whl" in result.stdout
    assert (tmp_path / "out" / "results.jsonl").exists()


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
