"""bench/gpu.sh with real benchmarks, at tiny sizes, and faults that are planted in their processes: what the log says.

Others are tried without the script: what a test that crashes, hangs or loses the GPU costs its file in
test_kernel_tests.py, ranks that do in test_shared_gpu.py, a part that hangs in test_gpu_script.py, and a server's rank
in tests/launcher/test_lifecycle.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.gpu_script import outcomes, run_script, write_stub

pytestmark = pytest.mark.skipif(
    not shutil.which("timeout") or not Path("/dev/full").exists(), reason="needs bash and timeout, as on Linux"
)

# Python looks for this module at each start. `planted_in` names the benchmark whose process this is, if one is meant.
PLANTED = """
import sys
planted_in = sys.orig_argv[2] if sys.orig_argv[1:2] == ["-m"] else None
if planted_in in ("bench.kernels", "bench.step", "bench.image"):
    import torch
    from bench import timing
    timing._CEILING_REPEATS = 2

if planted_in == "bench.kernels":
    from bench import kernel_cases
    from bench.survive import Attempts

    def upsample(*arguments, **options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if not Attempts().resumed:
        kernel_cases.upsample = upsample

if planted_in == "bench.step":
    import ctypes
    from engine.rank import Rank

    execute = Rank.execute
    def planted_execute(self, step):
        if step.denoise and self._engine.quantization == "none":
            ctypes.string_at(0)
        return execute(self, step)
    Rank.execute = planted_execute

    def planted_warm_up(self, *arguments, **options):
        with self._without_graphs_if_it_fails("steps"):
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    Rank.warm_up = planted_warm_up
    torch.cuda.synchronize = lambda *arguments: None

if planted_in == "bench.image":
    from engine.model import VAEDecoder

    decode_pixels = VAEDecoder.decode_pixels
    made = []
    def planted_decode(self, *arguments, **options):
        made.append(1)
        if len(made) > 3:  # the second engine's
            raise RuntimeError("cuDNN has no plan")
        return decode_pixels(self, *arguments, **options)
    VAEDecoder.decode_pixels = planted_decode
"""


def run_faulty(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(PLANTED)
    stub = write_stub(folder, "*bench.machine*) exit 0;;", otherwise=f'exec {sys.executable} "$@"')
    return run_script(folder, stub, "--first", "--small", *arguments, PYTHONPATH=str(folder))


def lines_of(folder: Path, benchmark: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    return [line for line in lines if line["benchmark"] == benchmark]


@pytest.mark.timeout(300)
def test_crashes_and_lost_gpus_leave_their_cause_and_what_comes_after_them_runs(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "traces").write_text("where a folder is to be")
    result = run_faulty(tmp_path, "--only", "kernel-checks,step")
    log = (tmp_path / "out" / "results.log").read_text()
    assert result.returncode == 1
    assert log == result.stdout
    kernels, step = log.split("\n== step (", 1)

    # An illegal access in the first shape's check of a kernel: its process ends, another checks what is left.
    assert "WRONG: VAE: upsample at (1, 77, 0, 130, 3) tokens: RuntimeError: CUDA error: an illegal" in kernels
    assert "FAILED: bench.kernels lost its GPU at: the check of VAE: upsample at (1, 77, 0, 130, 3) tokens." in kernels
    checks = lines_of(tmp_path, "kernel_check")
    assert [check["kernel"] for check in checks if not check["holds"]] == ["VAE: upsample"]
    by_shape = [sorted(check["kernel"] for check in checks if check["tokens"] == shape) for shape in shapes(checks)]
    assert len(by_shape) == 2
    assert by_shape[0] == by_shape[1], "each check came once, whatever process it was in"

    # A crash in the first engine's step: where, and the other engine in a new process.
    assert "Fatal Python error: Segmentation fault" in step
    assert "in planted_execute" in step
    assert "FAILED: bench.step was ended by SIGSEGV at: 64² with quantization none, attention auto." in step
    (line,) = lines_of(tmp_path, "step")
    assert line["quantization"] == "fp8"
    # Its graphs could not be recorded, nor its trace be written: it was measured.
    assert "no CUDA graphs of the steps, recording failed\nTraceback" in step
    assert "CUDA error: operation failed due to a previous error during capture" in step
    assert "FAILED: the profile of 64² with quantization fp8, attention auto" in step
    assert "FileExistsError" in step

    found = outcomes(log)
    assert {name: outcome.split(",")[0] for name, outcome in found.items()} == {
        "kernel-checks": "FAILED: exit status 1",
        "step": "FAILED: exit status 1",
    }
    assert f"{len(checks) - 1} of {len(checks)} checks hold; WRONG: VAE: upsample" in log
    assert "64², fp8, torch: " in log.splitlines()[-2]


@pytest.mark.timeout(300)
def test_with_a_full_disk_figures_are_on_stdout_and_a_decoder_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("results.jsonl", "results.log"):
        (tmp_path / "out" / name).symlink_to("/dev/full")
    result = run_faulty(tmp_path, "--only", "image")
    assert result.returncode == 1
    file = os.fspath(tmp_path / "out" / "results.jsonl")
    assert f"error: a line cannot be added to {file}: No space left on device" in result.stdout
    figures = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"benchmark": "image"')]
    assert [figure["quantization"] for figure in figures] == ["none"]
    assert "RuntimeError: cuDNN has no plan" in result.stdout
    assert "FAILED: 64 with quantization fp8, attention auto" in result.stdout
    assert outcomes(result.stdout)["image"].startswith("FAILED: exit status 1")
    assert f"error: the log, {tmp_path}/out/results.log, is not whole" in result.stderr


def shapes(checks: list[dict[str, Any]]) -> list[list[int]]:
    found: list[list[int]] = []
    for check in checks:
        if check["tokens"] not in found:
            found.append(check["tokens"])
    return found
