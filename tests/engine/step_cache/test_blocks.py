"""Blocks left out by DBCache's rule: against a plain loop, in mixed batches, and in every parallel mode."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from engine.config.demo_checkpoints import DEMO_LORAS
from engine.kernels.packing import Packing
from engine.model.transformer import Transformer
from engine.parallel.row_share import RowShare
from engine.rank.denoiser import Denoiser
from engine.rank.job_state import JobState
from engine.rank.rank import Rank
from engine.rank.step_handle import Preview
from engine.step import Adapter, Job
from engine.step_cache.blocks.packed_rows import PackedRows
from engine.step_cache.blocks.selective_pass import SelectivePass
from engine.step_cache.settings import StepCache
from tests.engine.step_cache.blocks_loop import RAW, Blocks, loop
from tests.engine_runs import RankGroups, jobs_of
from tests.oracle import Request, relative_error

BATCH_TOLERANCE, MODE_TOLERANCE, LOOP_TOLERANCE = 2e-5, 1e-4, 1e-4
CACHE = StepCache("blocks", warmup_steps=3, max_consecutive=2, order=1, max_cached=200, threshold=0.3)


@dataclass
class Run:
    """Latents by job, and the blocks that each job's halves ran, step by step."""

    latents: list[torch.Tensor]
    blocks: dict[int, Blocks]


def run_watched(rank_groups: RankGroups, jobs: Sequence[Job], **options: Any) -> Run:
    """`RankGroups.run_jobs`, with demo-raw. Also checks that all ranks decide alike."""
    step, told = Denoiser.step, dict[Denoiser, dict[int, Blocks]]()

    def watched(denoiser: Denoiser, states: Sequence[JobState]) -> list[Preview]:
        previews = step(denoiser, states)
        blocks_run = told.setdefault(denoiser, {})
        for job_id, blocks in denoiser.blocks_run:
            blocks_run.setdefault(job_id, []).append(blocks)
        return previews

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, "step", watched)
        pictures = rank_groups.run_jobs(RAW, jobs, **options)
    first, *others = told.values()
    assert all(other == first for other in others)
    return Run([picture.latents for picture in pictures], first)


@pytest.mark.parametrize(
    ("cache", "guidance"),
    [
        (CACHE, 2.0),
        *(
            pytest.param(cache, guidance, marks=pytest.mark.slow)
            for cache in (
                replace(CACHE, warmup_steps=1),
                replace(CACHE, order=0, max_consecutive=100),
                replace(CACHE, first_blocks=2, last_blocks=1, warmup_steps=0),
                replace(CACHE, max_cached=2, max_consecutive=1),
            )
            for guidance in (0.0, 2.0)
        ),
    ],
)
def test_an_image_is_that_of_a_plain_loop(rank_groups: RankGroups, cache: StepCache, guidance: float) -> None:
    request = Request("a red circle above a blue star", 64, 96, steps=12, guidance=guidance)
    latents, blocks = loop(request, cache)
    (job,) = jobs_of(RAW, [request])
    found = run_watched(rank_groups, [replace(job, cache=cache)])
    assert found.blocks == {0: blocks}
    assert relative_error(found.latents[0], latents) <= LOOP_TOLERANCE
    ran = [each for step in blocks[cache.warmup_steps : -1] for each in step]
    assert min(ran) < max(ran)  # some are saved, and some are not


LORAS = ((0, 1.0),)
OTHER = replace(CACHE, first_blocks=2, last_blocks=1, order=0, threshold=0.5)
REQUESTS = [
    Request("a red circle above a blue star", 64, 96, steps=10, guidance=2.0),
    Request("two yellow stars", 64, 64, steps=9, seeds=(1,)),
    Request("a green heart", 48, 64, steps=10, guidance=1.0, negative_prompt="a red circle", seeds=(2,)),
    Request(
        "a large purple diamond",
        64,
        64,
        steps=8,
        guidance=2.0,
        seeds=(3,),
        mu=0.0,
        sigmas=(1.0, 0.96, 0.9, 0.81, 0.7, 0.52, 0.3, 0.1),
    ),
    Request("three cyan crosses", 96, 32, steps=10, guidance=3.0, seeds=(4,)),
]


def mixed_jobs() -> list[Job]:
    """Images of several settings, one without any, one with an adapter, one that is guided in a part of its steps."""
    first, second, third, fourth, fifth = jobs_of(RAW, REQUESTS)
    return [
        replace(first, cache=CACHE),
        second,
        replace(third, cache=OTHER, loras=LORAS),
        replace(fourth, cache=StepCache("velocity", 2, 1, 1, 200)),
        replace(fifth, cache=CACHE, loras=LORAS, guidance_window=(0.2, 0.7), guidance_outside="last"),
    ]


@pytest.fixture(scope="module")
def adapters() -> list[Adapter]:
    return [Adapter(0, str(DEMO_LORAS["demo-outlined"]))]


@pytest.fixture(scope="module")
def alone(rank_groups: RankGroups, adapters: list[Adapter]) -> list[Run]:
    """Each of the mixed jobs by itself, on one rank."""
    return [run_watched(rank_groups, [job], adapters=adapters) for job in mixed_jobs()]


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"tp": 2},
        pytest.param({"sp": 2}, marks=pytest.mark.slow),
        pytest.param({"cfg_parallel": True}, marks=pytest.mark.slow),
        pytest.param({"tp": 4}, marks=pytest.mark.slow),
        pytest.param({"tp": 2, "sp": 2}, marks=pytest.mark.slow),
        pytest.param({"sp": 2, "cfg_parallel": True}, marks=pytest.mark.slow),
        pytest.param({"tp": 2, "cfg_parallel": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_images_of_a_mixed_batch_are_those_of_each_alone(
    rank_groups: RankGroups, adapters: list[Adapter], alone: list[Run], mode: dict[str, Any]
) -> None:
    """In the same steps the same blocks, in every parallel mode."""
    together = run_watched(rank_groups, mixed_jobs(), joins=[0, 1, 0, 2, 1], adapters=adapters, **mode)
    for index, by_itself in enumerate(alone):
        assert together.blocks.get(index) == by_itself.blocks.get(index)
        tolerance = MODE_TOLERANCE if mode else BATCH_TOLERANCE
        assert relative_error(together.latents[index], by_itself.latents[0]) <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", [{}, {"tp": 2}, {"sp": 2}, {"tp": 2, "sp": 2}, {"sp": 2, "cfg_parallel": True}], ids=str
)
def test_random_settings_decide_in_a_batch_as_alone(rank_groups: RankGroups, mode: dict[str, Any]) -> None:
    """Which has more points at which halves part and meet again. Thresholds are never near what they are compared
    with: no half decides by the last bit."""
    seed = random.Random().randrange(2**32)
    source = random.Random(seed)
    for _ in range(3):
        requests = [
            Request(
                source.choice(["a red circle", "two blue stars above a large green heart"]),
                width=16 * source.randint(1, 6),
                height=16 * source.randint(1, 6),
                steps=source.randint(2, 8),
                guidance=source.choice((0.0, 2.0)),
                seeds=(source.randrange(2**32),),
            )
            for _ in range(source.randint(2, 5))
        ]
        jobs = [replace(job, cache=random_cache(source)) for job in jobs_of(RAW, requests)]
        joins = [source.randint(0, 2) for _ in jobs]
        together = run_watched(rank_groups, jobs, joins=joins, **mode)
        for index, job in enumerate(jobs):
            by_itself = run_watched(rank_groups, [job])
            assert together.blocks.get(index) == by_itself.blocks.get(index), seed
            error = relative_error(together.latents[index], by_itself.latents[0])
            assert error <= (MODE_TOLERANCE if mode else BATCH_TOLERANCE), seed


def random_cache(source: random.Random) -> StepCache | None:
    if source.random() < 0.15:
        return None
    first = source.randint(1, 4)
    return StepCache(
        "blocks",
        warmup_steps=source.randint(0, 2),
        max_consecutive=source.randint(1, 3),
        order=source.randint(0, 1),
        max_cached=source.choice((1, 3, 200)),
        first_blocks=first,
        last_blocks=source.randint(0, 5 - first),
        threshold=source.choice((0.0, 100.0)),
    )


class Counted:
    """Counts the waits for decisions, and how often a batch is packed anew, in each forward."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.waits: list[int] = []
        self.packed: list[int] = []
        self.gathered = 0
        denoise, gather, pack = SelectivePass.denoise, RowShare.gather_of_each, PackedRows.pack

        def begin(selective: SelectivePass, *arguments: Any) -> torch.Tensor:
            self.waits.append(0)
            self.packed.append(0)
            return denoise(selective, *arguments)

        def wait(share: RowShare, x: torch.Tensor) -> torch.Tensor:
            self.waits[-1] += 1
            return gather(share, x)

        def count(rows: PackedRows, *arguments: Any) -> None:
            self.packed[-1] += 1
            pack(rows, *arguments)

        def gather_segments(*_: object) -> torch.Tensor:
            raise AssertionError("one rank has all rows")

        patch.setattr(SelectivePass, "denoise", begin)
        patch.setattr(RowShare, "gather_of_each", wait)
        patch.setattr(RowShare, "gather_segments", gather_segments)
        patch.setattr(PackedRows, "pack", count)


def test_the_host_waits_where_something_is_open_and_nothing_is_packed_where_all_decide_alike(
    rank_groups: RankGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = replace(CACHE, threshold=100.0)  # two of three steps are saved
    jobs = [replace(job, cache=alike) for job in jobs_of(RAW, [REQUESTS[0], REQUESTS[2]])]
    counted = Counted(monkeypatch)
    blocks = run_watched(rank_groups, jobs).blocks
    assert blocks[0] == blocks[1] == [*[(6, 6)] * 3, (1, 1), (1, 1), (6, 6), (1, 1), (1, 1), (6, 6), (6, 6)]
    # in the first and the last two no residual is of use to a later step, and the forward is an ordinary one
    assert counted.waits == [0, 0, 1, 1, 0, 1, 1]
    assert counted.packed == [0] * 7
    counted = Counted(monkeypatch)
    jobs[1] = replace(jobs[1], cache=replace(alike, threshold=0.0))
    blocks = run_watched(rank_groups, jobs).blocks
    assert blocks[0] == [*[(6, 6)] * 3, (1, 1), (1, 1), (6, 6), (1, 1), (1, 1), (6, 6), (6, 6)]
    assert blocks[1] == [(6, 6)] * 10
    assert counted.waits == [0, 0, 1, 1, 1, 1, 1, 1]
    assert counted.packed == [0, 0, 2, 2, 0, 2, 2, 0]  # apart, and together again


def test_jobs_without_caching_step_as_ever_and_those_with_it_are_not_replayed(
    rank_groups: RankGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    plain, cached = (replace(job, steps=4) for job in jobs_of(RAW, REQUESTS[:2]))
    cached = replace(cached, cache=replace(CACHE, warmup_steps=1))

    class Recorded:
        replays = 0

        def holds(self, packing: Packing) -> bool:
            return True

        def denoise(self, *arguments: Any) -> torch.Tensor:
            self.replays += 1
            return transformers[0].denoise(*arguments)

    recorded, transformers = Recorded(), list[Transformer]()

    def use(rank: Rank) -> None:
        rank.denoiser.graphs = recorded  # type: ignore[assignment]
        transformers.append(rank.model.transformer)

    def use_none(rank: Rank) -> None:
        rank.denoiser.graphs = None

    rank_groups.on_ranks(RAW, use)
    try:
        run_watched(rank_groups, [plain])
        assert (recorded.replays, counted.waits) == (4, [])
        run_watched(rank_groups, [plain, cached])
    finally:
        rank_groups.on_ranks(RAW, use_none)
    assert len(counted.waits) == 3
    assert recorded.replays == 5  # of the last step, in which nothing is watched
