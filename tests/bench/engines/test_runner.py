"""What the benchmarks of the whole engine have in common, each run at a tiny size on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.engines.cases import Case
from bench.engines.engine import Engine
from bench.image import __main__ as image
from bench.measure.files import encode_file
from bench.measure.lost import LOST
from bench.step import __main__ as step
from bench.step.measuring import StepResult
from bench.throughput import __main__ as throughput
from engine.model.vae import VAEDecoder
from engine.rank.rank import Rank
from launcher.disclosure.disclosure import Disclosure
from launcher.requests.check import CheckedRequest
from launcher.requests.image_files import encode_image
from tests.bench.engines.measured import TINY

pytestmark = pytest.mark.usefixtures("quick_ceilings")
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (step, ("--cases", "64,2x64")),
        (image, ("--sides", "64,128", "--steps", "1", "--idle", "0", "--sustained", "0")),
        (throughput, ("--loads", "1x64,2x64", "--steps", "1")),
    ],
)
def test_only_the_first_case_is_measured_when_the_time_is_up(
    module: Any, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert module.main([*TINY, *words, "--quantization", "none,fp8", "--seconds", "0"]) == 0
    output = capsys.readouterr()
    assert module.main([*TINY, *words, "--quantization", "none,fp8", "--seconds", "0"]) == 0
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines() if line.startswith('{"benchmark"')]
    assert [line["benchmark"] == "left_out" for line in lines] == [False, True]
    assert (len(lines[1]["what"]), lines[1]["of"]) == (3, 4)
    assert "with quantization none, attention auto is left out: the time is up" in output.err
    assert output.err.count("with quantization fp8, attention auto is left out: the time is up") == 2


def test_a_failure_is_told_with_its_cause_and_what_comes_after_it_still_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warm_up(rank: Rank, *_: object, **__: object) -> None:
        if rank.model.engine.quantization == "none":
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr("bench.engines.engine.warm_up", warm_up)
    words = [*TINY, "--cases", "64", "--quantization"]
    assert step.main([*words, "none,fp8"]) == 1
    output = capsys.readouterr()
    assert "FAILED: quantization none, attention auto: Traceback" in output.err
    assert "RuntimeError: CUDA error: operation failed due to a previous error during capture" in output.err
    assert '"quantization": "fp8"' in output.out
    assert step.main([*words, "none"]) == 1
    assert "FAILED: nothing was measured" in capsys.readouterr().err


def test_a_case_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_case = step.measure_case

    def measure(engine: Engine, case: Case, *arguments: Any) -> StepResult:
        if case.images == 2:
            raise RuntimeError("no such kernel")
        return measure_case(engine, case, *arguments)

    monkeypatch.setattr(step, "measure_case", measure)
    assert step.main([*TINY, "--cases", "2x64,64", "--quantization", "none"]) == 1
    output = capsys.readouterr()
    assert "RuntimeError: no such kernel" in output.err
    assert "\nFAILED: 2×64² with quantization none" in output.err
    assert '"images": 1' in output.out


def test_nothing_more_is_measured_with_a_gpu_that_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(engine: Engine, case: Case, *_: Any) -> StepResult:
        raise RuntimeError(f"CUDA error: an illegal memory access was encountered at {case}")

    monkeypatch.setattr(step, "measure_case", measure)
    assert step.main([*TINY, "--cases", "2x64,64", "--quantization", "none,fp8"]) == LOST
    errors = capsys.readouterr().err
    assert errors.count("Traceback") == 1
    assert "encountered at 2×64²" in errors
    assert "\nFAILED: the GPU is lost" in errors
    assert "at 64²" not in errors


def test_a_decoder_that_fails_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def decode(*_: object, **__: object) -> None:
        raise RuntimeError("cuDNN has no plan")

    monkeypatch.setattr(VAEDecoder, "decode_pixels", decode)
    quick = ("--sides", "64", "--steps", "1", "--idle", "0", "--sustained", "0")
    assert image.main([*TINY, *quick]) == 1
    assert "RuntimeError: cuDNN has no plan" in capsys.readouterr().err
    assert throughput.main([*TINY, "--loads", "1x64", "--steps", "1", "--quantization", "none"]) == 1
    assert "RuntimeError: cuDNN has no plan" in capsys.readouterr().err


def test_a_version_that_cannot_run_here_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main([*TINY, "--cases", "64", "--quantization", "none", "--attention", "cudnn,torch"]) == 0
    output = capsys.readouterr()
    assert "is left out: attention cudnn is not available" in output.err
    assert '"attention": "torch"' in output.out


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        (step, ("--cases", "64,0x64"), "cases must be SIDE or IMAGESxSIDE"),
        (step, ("--cases", "65"), "cases must be SIDE or IMAGESxSIDE"),
        (step, ("--quantization", "int4"), "quantization must be comma-separated, of none, fp8, got 'int4'"),
        (step, ("--graphs", "maybe"), "graphs must be comma-separated, of on, off"),
        (step, ("--layers", "0"), "layers must be positive, got 0"),
        (image, ("--sides", "64,x"), "sides must be comma-separated positive multiples of 16"),
        (image, ("--steps", "0"), "steps must be positive, got 0"),
        (throughput, ("--loads", "20"), "loads must be SIDE or IMAGESxSIDE"),
        (throughput, ("--prompt-tokens", "0"), "prompt-tokens must be between 1 and 507, got 0"),
    ],
)
def test_a_bad_option_is_named(
    module: Any, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert module.main([*TINY, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("output_format", ["jpeg", "png"])
def test_files_are_those_of_the_server(output_format: str) -> None:
    rgb = os.urandom(32 * 32 * 3)
    request = CheckedRequest(
        prompt="",
        negative_prompt=None,
        seed=0,
        steps=1,
        guidance=0.0,
        mu=None,
        width=32,
        height=32,
        num_images=1,
        priority=0,
        timeout_s=None,
        output_format=output_format,
        metadata=False,
        preview_every=None,
        loras=(),
        warnings=(),
    )
    bare = Disclosure(xmp=False)
    assert encode_file(rgb, 32, output_format) == encode_image(rgb, request, seed=0, disclosure=bare)


def test_the_benchmarks_need_neither_the_server_nor_a_peer_nor_pillow() -> None:
    code = """
import sys
for name in ("zmq", "msgspec", "launcher", "diffusers", "transformers", "PIL", "tokenizers"):
    sys.modules[name] = None
from bench.image import __main__ as image
from bench.step import __main__ as step
from bench.throughput import __main__ as throughput
tiny = ["--size", "tiny", "--device", "cpu", "--layers", "1", "--prompt-tokens", "7"]
assert image.main([*tiny, "--sides", "64", "--steps", "1", "--idle", "0", "--sustained", "0"]) == 0
assert step.main([*tiny, "--peer", "diffusers"]) == 2
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=550, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "peer diffusers is not available" in run.stderr
    line = next(json.loads(line) for line in run.stdout.splitlines() if line.startswith("{"))
    assert line["stages"]["file_s"] is line["stages"]["png_s"] is None
    assert line["sustained_s"] is None
