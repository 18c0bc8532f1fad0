"""Blocks left out where weights lie in host memory, and where memory runs out in the middle."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import DIT_LAYERWISE
from engine.offload.host_buffers import Copier, Wait
from engine.rank.recovery import Recovery
from engine.step import Job
from engine.step_cache.settings import StepCache
from tests.engine.rank.short_of_memory import OutOfMemory, Ranked
from tests.engine_runs import jobs_of
from tests.oracle import Request, relative_error

CACHE = StepCache("blocks", warmup_steps=1, max_consecutive=2, order=1, max_cached=200, threshold=100.0)
RAN = [6, 1, 1, 6, 1, 1, 6]  # blocks of the demo, by step, with this cache
STEPS = len(RAN)


def make_jobs() -> list[Job]:
    requests = [
        Request("a red circle", 64, 48, steps=STEPS),
        Request("two blue stars", 48, 48, steps=STEPS, guidance=2.0, seeds=(1,)),
    ]
    return [replace(job, cache=CACHE) for job in jobs_of(DEMO_CHECKPOINT, requests)]


def run(ranked: Ranked, jobs: Sequence[Job], modes: Sequence[Any] = ()) -> tuple[list[torch.Tensor], list[Any]]:
    """The latents of jobs, and what each step that denoises tells of the blocks that it ran."""
    told, execute = [], ranked.execute

    def watched(mode: Any = None, **parts: Any) -> Any:
        times = execute(mode, **parts)
        if parts.get("denoise"):
            told.append(times.blocks_run)
        return times

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranked, "execute", watched)
        latents = ranked.run(jobs, modes)
    for _ in jobs:
        ranked.image()
    return [latents[job.job_id] for job in jobs], told


@pytest.fixture(scope="module")
def expected() -> tuple[list[torch.Tensor], list[Any]]:
    ranked = Ranked()
    try:
        return run(ranked, make_jobs())
    finally:
        ranked.rank.close()


@pytest.mark.parametrize("prefetch", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_blocks_that_nobody_needs_are_not_copied(
    prefetch: int, expected: tuple[list[torch.Tensor], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked = Ranked(offload=(DIT_LAYERWISE,), prefetch=prefetch)
    copiers: list[Copier] = []
    copy = Copier.copy

    def count(copier: Copier, target: torch.Tensor, source: torch.Tensor) -> Wait:
        copiers.append(copier)
        return copy(copier, target, source)

    monkeypatch.setattr(Copier, "copy", count)
    copies: list[int] = []
    execute = ranked.execute

    def watched(mode: Any = None, **parts: Any) -> Any:
        copiers.clear()
        times = execute(mode, **parts)
        if parts.get("denoise"):
            copies.append(copiers.count(ranked.rank.model.offload.streams["transformer"]._copier))
        return times

    monkeypatch.setattr(ranked, "execute", watched)
    latents, told = run(ranked, make_jobs())
    assert told == expected[1] == [((0, (ran,)), (1, (ran, ran))) for ran in RAN]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(latents, expected[0], strict=True))
    assert copies == [6 if ran == 6 else 0 for ran in RAN]  # the first block has kept its slot
    ranked.rank.close()


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_step_that_was_broken_off_decides_the_same_again(
    times: int, expected: tuple[list[torch.Tensor], list[Any]]
) -> None:
    """Memory runs out anywhere in it, and then each job goes alone."""
    ranked, jobs = Ranked(offload=(DIT_LAYERWISE,)), make_jobs()
    counting = [OutOfMemory() for _ in RAN]
    run(ranked, jobs, counting)
    source = random.Random()
    seed = source.randrange(2**32)
    source.seed(seed)
    for _ in range(times):
        modes = [OutOfMemory([source.randrange(mode.operations)]) for mode in counting]
        latents, told = run(ranked, jobs, modes)
        assert not ranked.failures
        assert told == expected[1], seed
        for ours, theirs in zip(latents, expected[0], strict=True):
            assert relative_error(ours, theirs) <= 2e-5, seed
    ranked.rank.close()


def test_a_step_that_fails_alone_says_what_it_needs_for_saved_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    monkeypatch.setattr(Recovery, "_fail", lambda _, job, what, needed: said.append(needed))
    ranked, (job, _) = Ranked(), make_jobs()
    for job_id, cache in enumerate((None, CACHE)):
        ranked.execute(start=(replace(job, job_id=job_id, cache=cache),), denoise=(job_id,))
        ranked.execute(OutOfMemory(range(10**4)), denoise=(job_id,))
    ranked.rank.close()
    assert said[0] < said[1]
