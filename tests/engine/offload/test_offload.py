"""Weights in host memory: the same latents as without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER, VAE, EngineConfig
from engine.device.timing import seconds_between
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from engine.step import Adapter, Job, Step
from tests.engine.lora.adapter_files import add_vectors
from tests.engine.lora.random_changes import write_random
from tests.engine.offload.demo_rank import COMBINATIONS, CPU, Timeline
from tests.engine_runs import RankGroups, jobs_of, run_jobs, run_requests
from tests.oracle import Picture, Request

REQUESTS = [
    Request("a red circle on a blue background", seeds=(0, 1), steps=3),
    Request("a fox in the snow", guidance=2.0, negative_prompt="rain", width=64, seeds=(2,), steps=2),
]


def assert_same(pictures: list[Picture], expected: list[Picture]) -> None:
    for picture, reference in zip(pictures, expected, strict=True):
        assert torch.equal(picture.latents, reference.latents)
        assert (picture.image == reference.image).all()


@pytest.fixture(scope="module")
def of_weights_that_stay(turbo: Path, rank_groups: RankGroups) -> Callable[..., list[Picture]]:
    """`of_weights_that_stay(**options)`: the pictures of the requests without offloading, made once."""
    made: dict[Any, list[Picture]] = {}

    def get(**options: Any) -> list[Picture]:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = rank_groups.run_requests(turbo, REQUESTS, **options)
        return made[key]

    return get


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("offload", COMBINATIONS)
def test_offloading_changes_no_bit(
    turbo: Path, of_weights_that_stay: Callable[..., list[Picture]], offload: tuple[str, ...], tp: int
) -> None:
    pictures = run_requests(turbo, REQUESTS, tp=tp, joins=[0, 0, 1], offload=offload)
    assert_same(pictures, of_weights_that_stay(tp=tp, joins=[0, 0, 1]))


@pytest.mark.parametrize("prefetch", [0, 1, 2, 3])
def test_any_number_of_blocks_may_be_copied_ahead(
    turbo: Path, of_weights_that_stay: Callable[..., list[Picture]], prefetch: int
) -> None:
    pictures = run_requests(turbo, REQUESTS, offload=(DIT_LAYERWISE, TEXT_ENCODER), prefetch=prefetch)
    assert_same(pictures, of_weights_that_stay())


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
@pytest.mark.parametrize("offload", [(DIT_LAYERWISE,), (DIT,)])
def test_8_bit_matrices_travel_with_their_scales(
    turbo: Path, of_weights_that_stay: Callable[..., list[Picture]], offload: tuple[str, ...], quantization: str
) -> None:
    pictures = run_requests(turbo, REQUESTS, quantization=quantization, offload=offload)
    assert_same(pictures, of_weights_that_stay(quantization=quantization))


def test_bfloat16_is_the_same_too(turbo: Path, of_weights_that_stay: Callable[..., list[Picture]]) -> None:
    pictures = run_requests(turbo, REQUESTS, dtype="bfloat16", offload=(DIT_LAYERWISE, TEXT_ENCODER, VAE))
    assert_same(pictures, of_weights_that_stay(dtype="bfloat16"))


@pytest.mark.parametrize("offload", [(DIT_LAYERWISE,), (DIT,)])
def test_adapters_stay_beside_layers_that_come_and_go(
    turbo: Path, rank_groups: RankGroups, tmp_path: Path, offload: tuple[str, ...]
) -> None:
    """Some of their changes, DoRA's, are reckoned from the weights, which lie in host memory."""
    write_random(turbo, tmp_path / "lora.safetensors", 3, fused=True)
    file = add_vectors(tmp_path / "lora.safetensors", turbo)
    jobs = [replace(job, loras=((7, 0.3),) if job.job_id else ()) for job in jobs_of(turbo, REQUESTS)]
    adapters = [Adapter(7, str(file))]
    expected = rank_groups.run_jobs(turbo, jobs, adapters=adapters)
    assert_same(run_jobs(turbo, jobs, adapters=adapters, offload=offload), expected)


@pytest.mark.gpu
def test_on_a_gpu_latents_are_the_same_and_copies_begin_while_blocks_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    job = Job(0, tuple(range(34 + 20)), None, 512, 512, 2, 0.0, None, 0)
    latents, timeline = [], Timeline(monkeypatch, device)
    for offload in ((), (DIT_LAYERWISE, TEXT_ENCODER, VAE), (DIT, TEXT_ENCODER, VAE)):
        rank = Rank(EngineConfig(device="cuda", offload=offload), Mesh(), device)
        if DIT_LAYERWISE in offload:
            timeline.watch(rank)
        rank.execute(Step(0, start=(job,), denoise=(0,))).wait()
        rank.execute(Step(1, denoise=(0,))).wait()
        latents.append(rank.jobs[0].latents.clone())
        rank.execute(Step(2, decode=(0,))).wait()
        rank.close()
        assert rank.memory()["peak_weights"] <= rank.model.offload.plan.weights
    torch.cuda.synchronize(device)
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[0], latents[2])
    for compute, following in zip(timeline.computes, timeline.copies[1:], strict=False):
        assert seconds_between(following.began, compute.ended) > 0


def test_requests_in_a_tight_budget_give_the_same_latents(
    turbo: Path, of_weights_that_stay: Callable[..., list[Picture]]
) -> None:
    needed = Rank(EngineConfig(model=str(turbo)), Mesh(), CPU).model.offload.plan
    pictures = run_requests(turbo, REQUESTS, memory_budget=needed.needed - needed.weights // 3)
    assert len(pictures) == 3
    assert_same(pictures, of_weights_that_stay())
