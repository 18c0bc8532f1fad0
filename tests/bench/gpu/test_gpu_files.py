"""bench/gpu.sh and files: its results and log, what Triton compiled, wheels, and the folder it is started in."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.bench.gpu.gpu_script import NEEDS_BASH, SCRIPT, Run, write_stub

pytestmark = NEEDS_BASH


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
