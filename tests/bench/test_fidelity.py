"""python -m bench.fidelity, at its tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.engines.denoising import NOISE_DTYPE, final_latents
from bench.engines.real_size import TINY
from bench.fidelity import __main__ as fidelity
from bench.fidelity import blocks
from bench.fidelity.__main__ import main
from bench.fidelity.blocks import velocities
from bench.fidelity.demo import compare_images, demo_jobs
from bench.fidelity.files import FILES
from bench.fidelity.plain import PLAIN, plain_kernels
from bench.fidelity.variants import REFERENCE, Variant, available_variants, quantize
from bench.kernels.checks import relative_error
from bench.measure.lost import LOST
from engine.checkpoint.weight_format import BLOCK_MATRICES
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.kernels.fp8 import FP8
from engine.model import layers
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from launcher.requests.tokenizer import PromptTokenizer

CPU = torch.device("cpu")


def test_the_command_compares_precisions_and_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.jsonl"
    assert main(["--images", "2", "--layers", "1", "--side", "64", "--json", str(file)]) == 0
    output = capsys.readouterr().out
    assert "attention fa3: left out, it needs a CUDA device" in output
    assert "plain kernels: left out, on a CPU" in output
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    demo = {line["variant"]: line for line in lines if line["benchmark"] == "fidelity_demo"}
    of_blocks = {line["variant"]: line for line in lines if line["benchmark"] == "fidelity_blocks"}
    files = {f"file: {name}" for name in FILES}
    assert demo.keys() == of_blocks.keys() | {"bfloat16 timesteps alone"} | files
    assert of_blocks.keys() == {"bfloat16", "fp8", *(f"fp8 of {matrix} alone" for matrix in BLOCK_MATRICES)}
    # of so few pictures, which of two precisions near each other hits them harder is chance, and another one on each
    # kind of CPU
    for variant in ("bfloat16", "fp8"):
        assert 1e-4 < demo[variant]["latents_error"] < 0.1
        assert demo[variant]["psnr_db"] > 30
    # every matrix in fp8 is worse than none, and not hopeless
    assert 1e-4 < of_blocks["bfloat16"]["velocity_error"] < of_blocks["fp8"]["velocity_error"] < 0.2
    of_file = {name: demo[f"file: {name}"]["latents_error"] for name in FILES}
    assert all(1e-4 < error < 0.2 for error in of_file.values())
    assert of_file["GGUF Q8_0"] < min(of_file["GGUF Q5_0"], of_file["GGUF Q4_0"])
    assert of_file["GGUF Q6_K"] < min(of_file["GGUF Q4_K"], of_file["GGUF Q4_0"])
    assert of_file["mxfp8"] < of_file["nvfp4"]
    for matrix in BLOCK_MATRICES:
        alone = of_blocks[f"fp8 of {matrix} alone"]["velocity_error"]
        assert of_blocks["bfloat16"]["velocity_error"] < alone < of_blocks["fp8"]["velocity_error"]
    assert of_blocks["bfloat16"]["by_sigma"].keys() == {"1.0", "0.75", "0.5", "0.25"}


def test_without_time_everything_left_out_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images", "1", "--layers", "1", "--side", "32", "--seconds", "0"]) == 0
    output = capsys.readouterr().out
    assert "left out, since the time was up: demo: bfloat16, demo: fp8" in output
    assert "blocks: bfloat16, blocks: fp8" in output
    assert '{"benchmark": "left_out", "what": ["blocks: bfloat16", ' in output


def test_what_can_be_compared_here() -> None:
    variants, reasons = available_variants(CPU, 16)
    assert [variant.name for variant in variants][:2] == ["bfloat16", "fp8"]
    assert {"attention cudnn", "attention flash", "attention fa3", "attention fa4", "plain kernels"} <= reasons.keys()


def test_images_are_compared_by_their_latents_and_pixels() -> None:
    pixels = torch.full((300,), 100, dtype=torch.uint8)
    latents = torch.ones((4, 4))
    exact = [(latents, pixels), (latents, pixels)]
    assert compare_images("same", exact, exact).psnr_db is None
    errors = compare_images("other", [(latents, pixels), (latents * 1.5, pixels + 1)], exact)
    assert (errors.latents_error, errors.largest_latents_error) == (0.25, 0.5)
    assert errors.smallest_psnr_db == pytest.approx(48.13, abs=0.01)  # one level everywhere
    assert errors.psnr_db == pytest.approx(51.14, abs=0.01)


def test_matrices_quantised_later_are_those_that_the_loader_quantises() -> None:
    config = EngineConfig(device="cpu", dtype="bfloat16", quantization="fp8")
    loaded = Rank(config, Mesh(), CPU).model.transformer
    changed = Rank(EngineConfig(device="cpu", dtype="bfloat16"), Mesh(), CPU).model.transformer
    for matrix in BLOCK_MATRICES:
        quantize(changed, matrix)
    theirs = loaded.state_dict()
    for name, tensor in changed.state_dict().items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.float(), theirs[name].float())
    assert sum(tensor.dtype == FP8 for tensor in theirs.values()) == 6 * len(BLOCK_MATRICES)


def test_plain_kernels_are_the_engines_own_mathematics() -> None:
    exact = velocities(Variant("float32", "float32"), TINY, 64, CPU)
    on_gpu = layers.silu_mul._launch
    with plain_kernels(tuple(PLAIN)):
        assert layers.silu_mul._launch is layers.silu_mul.reference
    assert layers.silu_mul._launch is on_gpu is not layers.silu_mul.reference
    for plain, own in zip(velocities(REFERENCE, TINY, 64, CPU), exact, strict=True):
        assert relative_error(plain, own) < 1e-5
    model = ModelConfig.from_folder(DEMO_CHECKPOINT)
    latents = []
    for names in ((), tuple(PLAIN)):  # the text encoder's and text fusion's too
        with plain_kernels(names):
            rank = Rank(EngineConfig(device="cpu"), Mesh(), CPU)
            latents += final_latents(rank, demo_jobs(model, 1))
            rank.close()
    assert relative_error(latents[1], latents[0]) < 1e-4


def test_every_precision_starts_from_the_same_noise() -> None:
    model = ModelConfig.from_folder(DEMO_CHECKPOINT)
    (job,) = demo_jobs(model, 1)
    tokenizer = PromptTokenizer(DEMO_CHECKPOINT, model.text_encoder.vocab_size)
    assert job.prompt_ids == tokenizer.encode("a red circle on a blue background").ids
    exact, rounded = (
        final_latents(Rank(EngineConfig(device="cpu", dtype=dtype), Mesh(), CPU), [job])[0]
        for dtype in ("float32", "bfloat16")
    )
    assert NOISE_DTYPE is torch.bfloat16
    assert relative_error(rounded, exact) < 0.2  # of other noise it would be near 1


def test_a_variant_that_fails_leaves_the_others_unless_the_gpu_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compare_nothing(*_: object) -> list[str]:
        return []

    def broken(variant: Variant, *arguments: Any) -> list[torch.Tensor]:
        if variant.name == "fp8":
            raise RuntimeError(problem)
        return velocities(variant, *arguments)

    monkeypatch.setattr(fidelity, "compare_demo", compare_nothing)
    monkeypatch.setattr(blocks, "velocities", broken)
    file = tmp_path / "results.jsonl"
    words = ["--layers", "1", "--side", "64", "--json", str(file)]
    problem = "no such kernel"
    assert main(words) == 1
    output = capsys.readouterr().out
    assert "FAILED: blocks, fp8: Traceback" in output
    assert output.endswith("FAILED: blocks, fp8\n")
    measured = [json.loads(line)["variant"] for line in file.read_text().splitlines()]
    assert measured == ["bfloat16", *(f"fp8 of {matrix} alone" for matrix in BLOCK_MATRICES)]
    problem = "CUDA error: an illegal memory access was encountered"
    assert main(words) == LOST
    assert len(file.read_text().splitlines()) == len(measured) + 1, "nothing after it"
    assert "FAILED: the GPU is lost, and whatever it would compute in this process" in capsys.readouterr().out
