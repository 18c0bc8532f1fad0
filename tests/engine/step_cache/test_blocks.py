"""Blocks left out by DBCache's rule: against a plain loop, in mixed batches, and in every parallel mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from engine.rank.denoiser import Denoiser
from engine.rank.job_state import JobState
from engine.rank.step_handle import Preview
from engine.step import Job
from engine.step_cache.settings import StepCache
from tests.engine.step_cache.blocks_loop import RAW, Blocks, loop
from tests.engine_runs import RankGroups, jobs_of
from tests.oracle import Request, relative_error

BATCH_TOLERANCE, LOOP_TOLERANCE = 2e-5, 1e-4
CACHE = StepCache("blocks", warmup_steps=3, max_consecutive=2, order=1, max_cached=200, threshold=0.3)


@dataclass
class Run:
    """Latents by job, and the blocks that each job's halves ran, step by step."""

    latents: list[torch.Tensor]
    blocks: dict[int, Blocks]


@pytest.fixture
def run(rank_groups: RankGroups, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """`run(jobs, **options)`, as `RankGroups.run_jobs`, with demo-raw. Also checks that all ranks decide alike."""
    step, told = Denoiser.step, dict[Denoiser, dict[int, Blocks]]()

    def watched(denoiser: Denoiser, states: Sequence[JobState]) -> list[Preview]:
        previews = step(denoiser, states)
        for job_id, blocks in denoiser.blocks_run:
            told.setdefault(denoiser, {}).setdefault(job_id, []).append(blocks)
        return previews

    monkeypatch.setattr(Denoiser, "step", watched)

    def run(jobs: Sequence[Job], **options: Any) -> Run:
        told.clear()
        pictures = rank_groups.run_jobs(RAW, jobs, **options)
        first, *others = told.values() or [{}]
        assert all(other == first for other in others)
        return Run([picture.latents for picture in pictures], first)

    return run


@pytest.mark.parametrize(
    "cache",
    [
        CACHE,
        replace(CACHE, order=0, max_consecutive=100),
        replace(CACHE, first_blocks=2, last_blocks=1, warmup_steps=0),
        replace(CACHE, max_cached=2, max_consecutive=1),
    ],
    ids=["order 1", "order 0", "2 first and 1 last", "at most 2"],
)
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_an_image_is_that_of_a_plain_loop(run: Callable[..., Run], cache: StepCache, guidance: float) -> None:
    request = Request("a red circle above a blue star", 64, 96, steps=12, guidance=guidance)
    latents, blocks = loop(request, cache)
    (job,) = jobs_of(RAW, [request])
    found = run([replace(job, cache=cache)])
    assert found.blocks == {0: blocks}
    assert relative_error(found.latents[0], latents) <= LOOP_TOLERANCE
    ran = [each for step in blocks[cache.warmup_steps : -1] for each in step]
    assert min(ran) < max(ran)  # some are saved, and some are not
