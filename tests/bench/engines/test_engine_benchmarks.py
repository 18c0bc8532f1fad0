"""The benchmarks of the whole engine, each run at a tiny size on the CPU."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import engine.rank.rank as rank_module
from bench.engines import engine as engine_module
from bench.engines.cases import Case
from bench.engines.engine import Engine
from bench.engines.peer import Peer
from bench.engines.real_size import model_of_size
from bench.engines.setup import Setup, Version
from bench.image import __main__ as image
from bench.image import measuring
from bench.image.stages import Stages
from bench.image.unseen_length import measure_unseen
from bench.measure import timing
from bench.measure.files import FILE_OPTIONS, encode_file
from bench.measure.floor import Ceilings
from bench.measure.lost import LOST
from bench.measure.timing import Budget
from bench.step import __main__ as step
from bench.step.measuring import StepResult
from bench.throughput import __main__ as throughput
from engine.model.vae import VAEDecoder
from engine.rank.rank import Rank
from launcher.requests.check import CheckedRequest
from launcher.requests.image_files import encode_image

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
TINY = ("--size", "tiny", "--device", "cpu", "--layers", "2", "--prompt-tokens", "7")


@pytest.fixture(autouse=True)
def _quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_CEILING_REPEATS", 2)  # what the device reaches is nothing to these tests


@pytest.fixture
def _eager_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peer, "modes", ("eager",))  # compiling takes a minute


def test_a_step_is_timed_against_its_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--cases", "64,2x64", "--quantization", "none,fp8", "--json", str(tmp_path / "lines")]
    assert step.main(words) == 0
    lines = check_output(capsys, tmp_path / "lines", "step")
    assert [(line["case"], line["quantization"]) for line in lines] == [
        *(("64²", "none"), ("2×64²", "none")),
        *(("64²", "fp8"), ("2×64²", "fp8")),
    ]
    for line in lines:
        times = line["engine"]["step_s"]
        assert times["count"] >= 6
        assert 0 < times["p10"] <= times["median"] <= times["p90"]
        assert line["engine"]["noise"] >= 0
        assert line["tokens"] == line["images"] * (16 + 7 + 5)
        assert line["of_floor"] == pytest.approx(line["floor_s"] / times["median"])
        assert line["attention"] == "torch"
        assert line["cuda_graphs"] is False
        assert (line["peers"], line["ratio"]) == ({}, {})
        assert line["peak_memory_bytes"] > 0
        assert line["ceilings"]["matmul_flops"] > 0


@pytest.mark.usefixtures("_eager_peer")
def test_a_step_is_timed_against_diffusers(capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main([*TINY, "--cases", "64", "--quantization", "none", "--peer", "diffusers"]) == 0
    (line,) = check_output(capsys, None, "step")
    theirs = line["peers"]["eager"]["step_s"]
    assert theirs["count"] >= 6
    assert line["ratio"]["eager"] == pytest.approx(theirs["median"] / line["engine"]["step_s"]["median"])


@pytest.mark.slow
def test_a_step_is_timed_against_diffusers_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main([*TINY, "--cases", "64", "--quantization", "none", "--peer", "diffusers"]) == 0
    (line,) = check_output(capsys, None, "step")
    assert set(line["peers"]) == set(line["ratio"]) == {"eager", "compiled"}


@pytest.mark.usefixtures("_eager_peer")
def test_an_image_is_timed_stage_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--steps", "2", "--idle", "0", "--sustained", "0.1", "--sides", "64")
    words = [*TINY, *quick, "--peer", "diffusers", "--json", str(tmp_path / "lines")]
    assert image.main(words) == 0
    (line,) = check_output(capsys, tmp_path / "lines", "image")
    assert line["wall_s"]["count"] == 3
    stages = line["stages"]
    named = [stages[f"{name}_s"] for name in ("encode", "denoise", "decode", "file")]
    assert all(seconds > 0 for seconds in named)
    assert stages["png_s"] > 0
    assert stages["wall_s"] == pytest.approx(sum(named) + line["outside_s"])
    assert line["sustained_images"] >= 1
    assert line["sustained_s"] > 0
    assert line["target_s"] is None, "targets are for the real size on a GPU"
    assert set(line["file_bytes"]) == set(FILE_OPTIONS)
    assert line["peers"]["eager"]["ratio"] > 0


@pytest.mark.usefixtures("_eager_peer")
def test_a_load_is_timed_against_the_floors_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--steps", "2", "--loads", "3x64", "--quantization", "none")
    words = [*TINY, *quick, "--peer", "diffusers", "--json", str(tmp_path / "lines")]
    assert throughput.main(words) == 0
    (line,) = check_output(capsys, tmp_path / "lines", "throughput")
    assert line["images_per_s"] == pytest.approx(3 / line["wall_s"])
    assert 0 < line["latency_mean_s"] <= line["latency_p95_s"] <= line["wall_s"]
    assert line["of_floor"] == pytest.approx(line["floor_s"] / line["wall_s"])
    assert line["target"] is None
    assert line["peers"]["eager"]["images"] == line["peers"]["eager"]["batch"] == 3


def test_a_burst_ends_when_the_time_is_up() -> None:
    setup = Setup(model_of_size("tiny"), "tiny", CPU, torch.float32, (Version(),), 7, "none", Budget(0.0), None)
    engine = Engine(setup, Version())
    ceilings = Ceilings(1e11, None, None, 1e10)
    result = measuring.measure_image(engine, 64, ceilings, steps=1, burst=5, idle_s=0.0, sustained_s=10.0)
    engine.close()
    assert result.wall_s.count == 1
    assert result.sustained_images == 1


def test_images_that_do_not_fit_a_step_wait_for_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--steps", "2", "--loads", "5x64", "--quantization", "none", "--token-budget", "60"]
    assert throughput.main(words) == 0
    (line,) = check_output(capsys, None, "throughput")
    assert line["images"] == 5


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
    def warm_up(self: Rank, *_: object, **__: object) -> None:
        if self._engine.quantization == "none":
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(Rank, "warm_up", warm_up)
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


def test_what_a_length_that_was_not_seen_before_costs(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--sides", "64", "--steps", "1", "--burst", "1", "--idle", "0", "--sustained", "0")
    lengths: list[int] = []
    make_image = measuring.make_image

    def note_length(engine: Engine, *arguments: Any, **options: Any) -> Stages:
        lengths.append(options.get("prompt_tokens") or engine.setup.prompt_tokens)
        return make_image(engine, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measuring, "make_image", note_length)
        assert image.main([*TINY, *quick, "--prompt-tokens", "58", "--unseen-length", "3"]) == 0
    (line,) = check_output(capsys, None, "image")
    assert lengths == [58, 58, 58, *(60, 60), *(60, 61), *(62, 62)], "59 is what a rank warms up with"
    unseen = line["unseen_length"]
    assert unseen["lengths"] == [60, 61, 62]
    assert unseen["difference_s"] == pytest.approx(unseen["unseen_s"]["median"] - unseen["seen_s"]["median"])
    assert (unseen["unseen_s"]["count"], unseen["seen_s"]["count"]) == (3, 3)
    assert (unseen["plan_s"]["count"], unseen["plan_s"]["median"]) == (3, 0.0), "a CPU has no plans to build"


def test_the_plan_of_a_new_length_is_built_between_its_image_and_the_next() -> None:
    did: list[str] = []

    class Planned:
        setup = SimpleNamespace(budget=Budget(None))
        lengths = iter((60, 61, None))

        def unseen_length(self) -> int | None:
            return next(self.lengths)

        def build_plans(self) -> float:
            did.append("plan")
            return 0.3

    def make(tokens: int) -> float:
        did.append(f"image {tokens}")
        return 1.0

    result = measure_unseen(Planned(), make, 4)  # type: ignore[arg-type]
    assert result is not None
    assert result.plan_s.median == 0.3
    assert did == ["image 60", "plan", "image 60", "image 60", "image 61", "plan"]


def test_lengths_end_where_prompts_are_cut() -> None:
    setup = Setup(model_of_size("tiny"), "tiny", CPU, torch.float32, (Version(),), 506, "none", Budget(None), None)
    engine = Engine(setup, Version())
    made: list[int] = []

    def make(tokens: int) -> float:
        made.append(tokens)
        engine.new_jobs(1, 64, 1, tokens)
        return 1.0

    result = measure_unseen(engine, make, 4)
    assert result is not None
    assert (made, result.lengths) == ([506, 506, 506, 507], (506, 507))
    assert measure_unseen(engine, make, 4) is None
    engine.close()


def test_the_length_that_a_rank_warms_up_with_is_no_new_one() -> None:
    assert engine_module.WARM_UP_TEXT_TOKENS == rank_module._TYPICAL_PROMPT_TOKENS


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


def test_a_profile_names_operations_and_leaves_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main([*TINY, "--cases", "64", "--quantization", "none", "--profile", str(tmp_path)]) == 0
    assert "3 steps of 1×64², quantization none" in (told := capsys.readouterr().err)
    assert "aten::mm" in told
    with gzip.open(tmp_path / "trace-1x64-none-auto.json.gz") as trace:
        assert any(event["name"] == "aten::mm" for event in json.load(trace)["traceEvents"])


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
    assert encode_file(rgb, 32, output_format) == encode_image(rgb, request, seed=0)


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


def check_output(capsys: pytest.CaptureFixture[str], file: Path | None, benchmark: str) -> list[dict[str, Any]]:
    """The JSON lines, each complete in itself, the same in the file; and the table below a title that says what the
    weights are."""
    output = capsys.readouterr().out.splitlines()
    lines = [line for line in output if line.startswith("{")]
    if file is not None:
        assert file.read_text().splitlines() == lines
    title = next(line for line in output if line.startswith(f"bench.{benchmark}: "))
    assert "random weights, size tiny with other layers, 2 DiT blocks, float32 on cpu" in title
    assert len(output) == output.index(title) + 3 + len(lines)
    results = [json.loads(line) for line in lines]
    for result in results:
        assert result["benchmark"] == benchmark
        assert result["weights"] == "random"
        assert (result["size"], result["layers"], result["device"]) == ("tiny with other layers", 2, "cpu")
        assert result["gpu_shared"] is False
        assert result["hardware"]["cpu"]
        assert result["versions"]["torch"]
        assert "commit" in result
    return results
