"""bench/gpu.sh with real benchmarks, at tiny sizes, and faults that are planted in their processes: what the log says.

Others are tried without the script: checks of kernels that lose the GPU in test_kernels.py, tests that do, crash or
hang in test_kernel_tests.py, ranks in test_shared_gpu.py, decoders that fail in engines/test_runner.py, and a
server's rank in tests/launcher/lifecycle/test_lifecycle.py; a part that hangs in test_gpu_script.py, files that cannot
be written in test_gpu_files.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.gpu.gpu_script import outcomes, run_script, write_stub

pytestmark = pytest.mark.skipif(
    not shutil.which("timeout") or not Path("/dev/full").exists(), reason="needs bash and timeout, as on Linux"
)

# Python looks for this module at each start. `planted_in` names the benchmark whose process this is, if one is meant.
PLANTED = """
import sys
planted_in = sys.orig_argv[2] if sys.orig_argv[1:2] == ["-m"] else None
if planted_in in ("bench.step", "bench.image"):
    import torch
    from bench.measure import timing
    timing._CEILING_REPEATS = 2

if planted_in == "bench.step":
    import ctypes
    from engine.rank.rank import Rank

    execute = Rank.execute
    def planted_execute(self, step):
        if step.denoise and self.model.engine.quantization == "none":
            ctypes.string_at(0)
        return execute(self, step)
    Rank.execute = planted_execute

    from engine.rank import warm_up

    def planted_warm_up(rank, *arguments, **options):
        with warm_up.without_graphs_if_it_fails(rank, "steps"):
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    warm_up.warm_up = planted_warm_up
    torch.cuda.synchronize = lambda *arguments: None

if planted_in == "bench.image":
    from engine.model.vae import VAEDecoder

    decode_pixels = VAEDecoder.decode_pixels
    made = []
    def planted_decode(self, *arguments, **options):
        made.append(1)
        if len(made) > 3:  # the second engine's
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return decode_pixels(self, *arguments, **options)
    VAEDecoder.decode_pixels = planted_decode
"""

# bash reads this at its start: each part has ten times as long, for a machine with much else to do.
PATIENT = 'source() { builtin source "$@" && fit() { slice=$((10 * $1)); }; }\n'


def run_faulty(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(PLANTED)
    (folder / "patient").write_text(PATIENT)
    stub = write_stub(folder, "*bench.machine*) exit 0;;", otherwise=f'exec {sys.executable} "$@"')
    environment = {"PYTHONPATH": str(folder), "BASH_ENV": str(folder / "patient"), "OMP_NUM_THREADS": "1"}
    return run_script(folder, stub, "--first", "--small", *arguments, **environment)


def test_a_crash_leaves_its_cause_and_what_is_left_runs(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "traces").write_text("where a folder is to be")
    result = run_faulty(tmp_path, "--only", "step")
    log = (tmp_path / "out" / "results.log").read_text()
    assert (result.returncode, log) == (1, result.stdout)
    # in the first engine's step: where, and the other engine in a new process
    assert "Fatal Python error: Segmentation fault" in log
    assert "in planted_execute" in log
    assert "FAILED: bench.step was ended by SIGSEGV at: 64² with quantization none, attention auto." in log
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(line["benchmark"], line["quantization"]) for line in lines] == [("step", "fp8")]
    # whose graphs could not be recorded, and whose trace could not be written
    assert "no CUDA graphs of the steps, recording failed\nTraceback" in log
    assert "CUDA error: operation failed due to a previous error during capture" in log
    assert "FAILED: the profile of 64² with quantization fp8, attention auto" in log
    assert "FileExistsError" in log
    assert outcomes(log)["step"].startswith("FAILED: exit status 1")
    figure, cause, _ = log.splitlines()[-3:]
    assert "64², fp8, torch: " in figure, "the table has it"
    assert cause.strip().startswith("FAILED: bench.step was ended by SIGSEGV at: 64² with quantization none")


def test_with_a_full_disk_figures_are_on_stdout_and_a_decoder_that_loses_the_gpu_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("results.jsonl", "results.log"):
        (tmp_path / "out" / name).symlink_to("/dev/full")
    result = run_faulty(tmp_path, "--only", "image")
    assert result.returncode == 1
    file = tmp_path / "out" / "results.jsonl"
    assert f"error: a line cannot be added to {file}: No space left on device" in result.stdout
    figures = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"benchmark": "image"')]
    assert [figure["quantization"] for figure in figures] == ["none"]
    assert f"error: the log, {tmp_path}/out/results.log, is not whole" in result.stderr
    illegal = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert f"FAILED: the GPU is lost, and whatever it would compute in this process: {illegal}" in result.stdout
    assert "in planted_decode" in result.stdout
    assert "FAILED: bench.image lost its GPU at: 64 with quantization fp8, attention auto." in result.stdout
    assert outcomes(result.stdout)["image"].startswith("FAILED: exit status 1")
