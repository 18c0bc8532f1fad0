"""Steps in recordings: the same velocities whatever ran in a recording before, with all kernels being Triton's.

On a GPU with CUDA graphs. On the CPU a recording runs its forward at every replay, in Triton's interpreter: what is
seen there is everything but the capture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.engines.denoising import NOISE_DTYPE
from bench.engines.real_size import TINY, RandomWeights
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.kernels.gate import gate_mul_triton
from engine.kernels.norm import norm_triton
from engine.kernels.packing import Packing
from engine.kernels.rope import image_rotations, norm_rotate_triton_
from engine.model import layers, transformer
from engine.model.batch import Layout, Segment
from engine.parallel.mesh import Mesh
from engine.rank import cuda_graphs as graphs
from engine.rank.cuda_graphs import PromptGraphs, StepGraphs
from engine.rank.rank import Rank
from engine.rank.sampling import draw_noise
from engine.rank.warm_up import record_graphs, warm_up
from engine.step import Job, Step
from tests.conftest import INTERPRETED
from tests.engine.kernels.tolerances import relative_error

pytest.importorskip("triton")

# (text tokens, rows, columns) of each segment: one image, two batches for one recording, more than it holds, and all
# that it holds, with nothing left for the dummy
BATCHES = [
    [(3, 2, 2)],
    [(2, 2, 2), (3, 1, 3), (3, 1, 1)],
    [(1, 2, 4), (2, 2, 1)],
    [(5, 2, 3), (5, 2, 3)],
    [(1, 1, 1)] * 8,
]
STEP_ROWS = PROMPT_ROWS = 16  # the interpreter takes a millisecond a row, in each block
SIDES = (64, 128, 1024)  # of images, in pixels


def _rank(dtype: str, quantization: str = "none", config: ModelConfig = TINY) -> Rank:
    device = torch.device("cpu" if INTERPRETED else "cuda")
    weights = RandomWeights(config, device)
    return Rank(EngineConfig(dtype=dtype, quantization=quantization), Mesh(), device, weights=weights)


@pytest.fixture
def rank() -> Rank:
    return _rank(
        "float32",
        config=replace(TINY, transformer=replace(TINY.transformer, num_layers=2, num_heads=4, num_kv_heads=2)),
    )


@pytest.fixture
def _kernels(monkeypatch: pytest.MonkeyPatch, loops_with_run_time_bounds: None) -> None:
    """All kernels by Triton, and on the CPU recordings that only remember what to run."""
    if INTERPRETED:

        def record(self: Any, run: Callable[[], torch.Tensor], recorder: Any) -> None:
            self._run = run

        monkeypatch.setattr(graphs._Recording, "__init__", record)
        monkeypatch.setattr(graphs._Recording, "replay", lambda self: self._run())
        monkeypatch.setattr(graphs, "_Recorder", lambda device: None)
    monkeypatch.setattr(graphs, "_STEP_ROWS", STEP_ROWS)
    monkeypatch.setattr(graphs, "_PROMPT_ROWS", PROMPT_ROWS)

    def modulate(x: Any, factor: Any, shift: Any, eps: float, packing: Packing, *, fp8: bool = False) -> Any:
        return norm_triton(x, factor, eps, shift=shift, packing=packing, fp8=fp8)

    def add_and_modulate(x: Any, update: Any, gate: Any, *arguments: Any, fp8: bool = False) -> Any:
        factor, shift, eps, packing = arguments
        return norm_triton(x, factor, eps, update=update, total=x, gate=gate, shift=shift, packing=packing, fp8=fp8)

    def silu(gate_up: torch.Tensor, *, fp8: bool = False) -> Any:
        gate, up = gate_up.chunk(2, dim=-1)
        return gate_mul_triton(up, gate, silu=True, fp8=fp8)

    def rotate(*arguments: Any, **options: Any) -> None:
        norm_rotate_triton_(*arguments, **options)

    monkeypatch.setattr(transformer, "rms_norm_modulate", modulate)
    monkeypatch.setattr(transformer, "add_rms_norm_modulate_", add_and_modulate)
    monkeypatch.setattr(layers, "silu_mul", silu)
    monkeypatch.setattr(layers, "norm_rotate_", rotate)


def _inputs(rank: Rank, shapes: list[tuple[int, int, int]]) -> tuple[Any, ...]:
    dit = rank.model.config.transformer
    segments = [Segment(image, *shape) for image, shape in enumerate(shapes)]
    grids = [
        image_rotations(s.grid_height, s.grid_width, dit.axes_dims_rope, dit.rope_theta).to(rank.model.device)
        for s in segments
    ]
    text = [torch.randn(s.text_tokens, dit.hidden_size, device=rank.model.device) for s in segments]
    latents = [torch.randn(s.image_tokens, dit.in_channels, device=rank.model.device) for s in segments]
    modulation = rank.model.transformer.encode_timesteps(torch.rand(len(segments), device=rank.model.device))
    return text, latents, modulation, Layout(segments, grids)


@pytest.mark.usefixtures("_kernels")
def test_batches_in_recordings_are_the_batches_alone(rank: Rank) -> None:
    with torch.inference_mode():
        inputs = [_inputs(rank, batch) for batch in BATCHES]
        rank.model.attention.backend = "torch"
        expected = [rank.model.transformer(*each) for each in inputs]
        rank.model.attention.captured_backend = "triton"
        recorded = StepGraphs(rank.model)
        for index in (0, 1, 2, 3, 4, 1):
            assert recorded.holds(inputs[index][3].share.whole)
            actual = rank.model.transformer(*inputs[index], denoise=recorded.denoise)
            assert relative_error(actual, expected[index]) <= 1e-5


def test_what_a_recording_does_not_hold(rank: Rank) -> None:
    recorded = StepGraphs.holds
    assert recorded(None, Packing([1024], rank.model.device))  # type: ignore[arg-type]
    assert not recorded(None, Packing([1000, 25], rank.model.device))  # type: ignore[arg-type]
    assert recorded(None, Packing([20] * 8, rank.model.device))  # type: ignore[arg-type]
    assert not recorded(None, Packing([20] * 9, rank.model.device))  # type: ignore[arg-type]


@pytest.mark.usefixtures("_kernels")
def test_what_fills_a_prompts_recording_up_changes_nothing_in_it(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        recorded = PromptGraphs(rank.model)
        for tokens in (10, 15, 16, 17, 11):
            ids = torch.randint(0, 400, (tokens,), device=rank.model.device)
            expected = rank.model.text_encoder(ids, Packing([tokens], rank.model.device))
            assert relative_error(recorded.encode(ids), expected) <= 1e-5


def test_recordings_that_fail_are_told_and_left_out(
    rank: Rank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("engine.rank.warm_up.PromptGraphs", fail)
    monkeypatch.setattr("engine.rank.warm_up.StepGraphs", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    rank.model.attention.captured_backend = "triton"
    record_graphs(rank)
    assert rank.denoiser.graphs is None
    for what in ("text encoder", "steps"):
        assert f"no CUDA graphs of the {what}" in caplog.text
        told = rank.model.attention_choice.describe()[f"graphs of the {what}"]
        assert told == "not used: RuntimeError: operation not permitted when stream is capturing"


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_a_warmed_up_rank_makes_the_images_of_one_that_is_not(quantization: str) -> None:
    """Both compute in the same precision, so one has no reason to be further from float32 than the other. The sizes are
    within the recordings and beyond them."""

    def run(dtype: str, quantization: str, *, warm: bool) -> list[torch.Tensor]:
        rank = _rank(dtype, quantization)
        if warm:
            warm_up(rank)
            assert rank.denoiser.graphs is not None
        latents = []
        for start, *denoise in _steps_of_images():
            rank.execute(start).wait()
            (job,) = start.start
            noise = draw_noise(job.seed, job.width, job.height, rank.model.config, NOISE_DTYPE)
            with torch.inference_mode():
                rank.jobs[job.job_id].latents.copy_(noise)
            for step in denoise:
                rank.execute(step).wait()
            latents.append(rank.jobs[job.job_id].latents.cpu())
        rank.close()
        return latents

    exact = run("float32", "none", warm=False)
    cold, warm = run("bfloat16", quantization, warm=False), run("bfloat16", quantization, warm=True)
    for reference, one, other in zip(exact, cold, warm, strict=True):
        error = relative_error(one, reference)
        assert error <= (0.1 if quantization == "fp8" else 0.02)
        assert relative_error(other, reference) <= 1.2 * error


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_the_host_waits_for_nothing_while_it_queues_steps(quantization: str) -> None:
    rank = _rank("bfloat16", quantization)
    warm_up(rank)
    torch.cuda.set_sync_debug_mode("error")
    try:
        handles = [rank.execute(step) for steps in _steps_of_images() for step in steps]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [step.wait().encoded_tokens for step in handles[::5]] == [60, 61, 62]
    rank.close()


@pytest.mark.gpu
def test_recordings_share_their_memory() -> None:
    rank = _rank("bfloat16", config=replace(TINY, transformer=replace(TINY.transformer, intermediate_size=8192)))
    rank.model.attention.captured_backend = "triton"
    with torch.inference_mode():
        recorded = StepGraphs(rank.model)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        recorded._recording(1024)
        torch.cuda.empty_cache()
        largest = torch.cuda.memory_reserved() - before
        recorded.record_all()
        torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < 1.5 * largest


def _steps_of_images() -> list[list[Step]]:
    """Of each of the images, whose sides are `SIDES`: the step that starts it, and 4 that denoise it."""
    images = []
    for image, side in enumerate(SIDES):
        # mu: with 0 the timesteps of 4 steps are numbers that bfloat16 has
        job = Job(image, tuple(range(60 + image)), None, side, side, 4, 0.0, 0.0, image)
        first = 5 * image
        denoise = [Step(first + 1 + step, denoise=(image,)) for step in range(job.steps)]
        images.append([Step(first, start=(job,)), *denoise])
    return images
