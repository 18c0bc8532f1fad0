"""Tokens and segments split over ranks: pictures do not depend on it. That they are diffusers' is in `test_parity`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.scaling.mesh_groups import counting
from engine.config.chat_template import PREFIX_TOKENS
from engine.config.demo_checkpoints import DEMO_CHECKPOINT, DEMO_LORAS
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.kernels.packing import Packing
from engine.model.vae import VAEDecoder
from engine.parallel.group import Group
from engine.parallel.row_share import RowShare
from engine.planning.work_division import Traffic, sent_in_step
from engine.rank.build import RankModel
from engine.rank.denoiser import Denoiser
from engine.rank.rank import Rank
from engine.step import Adapter, Job, Step
from tests.engine.parallel.thread_group import thread_groups, thread_meshes
from tests.engine_runs import DEADLINE_S, RankGroup, RankGroups, jobs_of, on_ranks, run_jobs
from tests.oracle import Picture, Request, relative_error

TOLERANCE = 1e-4  # the goal; measured 2e-7 to 1.3e-5, float32 sums in another order
MODES: dict[str, dict[str, Any]] = {
    "sp 2": {"sp": 2},
    "sp 4": {"sp": 4},
    "tp 2, sp 2": {"tp": 2, "sp": 2},
    "cfg": {"cfg_parallel": True},
    "tp 2, cfg": {"tp": 2, "cfg_parallel": True},
    "sp 2, cfg": {"sp": 2, "cfg_parallel": True},
}
PROMPTS = ("", "a red circle on a blue background", "a small cyan star at the left on a black background " * 9)


def random_jobs(source: random.Random, count: int) -> list[Job]:
    """Any sizes down to one image token, steps and guidance."""
    folder = DEMO_CHECKPOINT
    requests = [
        Request(
            source.choice(PROMPTS),
            width=16 * source.randint(1, 12),
            height=16 * source.randint(1, 12),
            steps=source.randint(1, 3),
            guidance=source.choice((0.0, 2.0)),
            negative_prompt=source.choice(PROMPTS),
            seeds=(source.randrange(2**32),),
        )
        for _ in range(count)
    ]
    return jobs_of(folder, requests)


@pytest.fixture(scope="module")
def of_one_rank(rank_groups: RankGroups) -> Callable[..., list[Picture]]:
    """`of_one_rank(jobs, adapters)`: what one rank makes of them, made once."""

    @cache
    def get(jobs: tuple[Job, ...], adapters: tuple[Adapter, ...] = ()) -> list[Picture]:
        return rank_groups.run_jobs(DEMO_CHECKPOINT, jobs, adapters=adapters)

    return get


@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_a_rank_may_have_no_rows_of_a_step(quantization: str) -> None:
    """Six tokens are two each for three ranks, and none for the fourth, which attends with its heads all the same."""
    jobs = jobs_of(DEMO_CHECKPOINT, [Request("", width=16, height=16, steps=2)])
    tokens = len(jobs[0].prompt_ids) - PREFIX_TOKENS + 1
    shares = thread_groups(4)[0].shares(tokens)
    assert shares[-1] == 0 < shares[0]
    (alone,) = run_jobs(DEMO_CHECKPOINT, jobs, quantization=quantization)
    (split,) = run_jobs(DEMO_CHECKPOINT, jobs, quantization=quantization, sp=4)
    assert relative_error(split.latents, alone.latents) <= (TOLERANCE if quantization == "none" else 2e-2)


@pytest.mark.parametrize("mode", MODES, scope="module")
def test_adapters_apply_to_their_rows_only(
    rank_groups: RankGroups, of_one_rank: Callable[..., list[Picture]], mode: str
) -> None:
    adapters = (Adapter(1, str(DEMO_LORAS["demo-outlined"])),)
    strengths = (1.0, 0.0, -0.7)
    jobs = tuple(
        replace(job, loras=((1, strength),) if strength else ())
        for job, strength in zip(random_jobs(random.Random(5), 3), strengths, strict=True)
    )
    alone = of_one_rank(jobs, adapters)
    without = of_one_rank(tuple(replace(job, loras=()) for job in jobs))
    split = rank_groups.run_jobs(DEMO_CHECKPOINT, jobs, adapters=adapters, **MODES[mode])
    for one, other, plain, strength in zip(alone, split, without, strengths, strict=True):
        assert relative_error(other.latents, one.latents) <= TOLERANCE
        assert (relative_error(plain.latents, one.latents) > 100 * TOLERANCE) == bool(strength)


@pytest.mark.parametrize("mode", MODES, scope="module")
def test_weights_that_come_and_go(of_one_rank: Callable[..., list[Picture]], mode: str) -> None:
    jobs = random_jobs(random.Random(7), 2)
    options: dict[str, Any] = {"offload": ("dit-layerwise", "text-encoder", "vae")}
    alone = of_one_rank(tuple(jobs))
    for one, other in zip(alone, run_jobs(DEMO_CHECKPOINT, jobs, **MODES[mode], **options), strict=True):
        assert relative_error(other.latents, one.latents) <= TOLERANCE


@pytest.mark.parametrize(
    ("mode", "saving"),
    [({"tp": 2}, {}), ({"sp": 4}, {}), ({"sp": 2}, {"offload": ("vae",)}), ({"sp": 2}, {"memory_budget": 4 * 10**9})],
)
def test_ranks_decode_an_image_together_if_each_gets_enough_of_its_rows(
    rank_groups: RankGroups, monkeypatch: pytest.MonkeyPatch, mode: dict[str, Any], saving: dict[str, Any]
) -> None:
    decoded: list[tuple[int, int]] = []
    decode = VAEDecoder.decode_pixels

    def watched(vae: VAEDecoder, latents: torch.Tensor, *, group: Group | None = None, **options: Any) -> torch.Tensor:
        decoded.append((latents.shape[2], 1 if group is None else group.size))
        return decode(vae, latents, group=group, **options)

    monkeypatch.setattr(VAEDecoder, "decode_pixels", watched)
    requests = [Request(PROMPTS[1], width=64, height=height, steps=1) for height in (48, 240, 272)]
    alone = rank_groups.run_requests(DEMO_CHECKPOINT, requests)
    decoded.clear()
    together = rank_groups.run_requests(DEMO_CHECKPOINT, requests, **saving, **mode)
    ranks = EngineConfig(**mode).ranks
    expected = Counter({(6, 1): 1, (30, ranks): ranks, (34, ranks): ranks})
    if saving:
        expected = Counter({(6, 1): 1, (30, 1): 1, (34, 1): 1})
    assert Counter(decoded) == expected
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.image.astype(int) - other.image.astype(int)).max() <= 1


# In fp8 an activation that rounds to another number is 6 % off, one of many in a sum.
@pytest.mark.parametrize(("quantization", "tolerance"), [("int8", TOLERANCE), ("fp8", 2e-2)])
def test_eight_bits(quantization: str, tolerance: float) -> None:
    jobs = random_jobs(random.Random(6), 3)
    alone, split = (run_jobs(DEMO_CHECKPOINT, jobs, sp=sp, quantization=quantization) for sp in (1, 2))
    for one, other in zip(alone, split, strict=True):
        assert relative_error(other.latents, one.latents) <= tolerance


@pytest.mark.parametrize(
    ("guidances", "expected"),
    [
        ((2.0,), {(1, 1)}),
        ((0.0,), {(1, 2)}),
        ((0.0, 0.0), {(1, 1)}),
        ((2.0, 0.0), {(3, 2)}),
        ((2.0, 0.0, 0.0), {(2, 1)}),
    ],
)
def test_no_rank_steps_what_another_does(
    rank_groups: RankGroups,
    monkeypatch: pytest.MonkeyPatch,
    guidances: tuple[float, ...],
    expected: set[tuple[int, int]],
) -> None:
    """expected: segments in a forward, and among how many ranks it is split."""
    seen = set()
    forward = Denoiser._forward

    def watched(denoiser: Denoiser, segments: Sequence[Any], group: Group) -> torch.Tensor:
        seen.add((len(segments), group.size))
        return forward(denoiser, segments, group)

    monkeypatch.setattr(Denoiser, "_forward", watched)
    requests = [
        Request(PROMPTS[1], guidance=guidance, steps=1, negative_prompt="a red star on") for guidance in guidances
    ]
    rank_groups.run_requests(DEMO_CHECKPOINT, requests, cfg_parallel=True)
    assert seen == expected


@pytest.mark.parametrize(
    ("mode", "quantization"), [*((mode, "none") for mode in MODES), ("tp 2, sp 2", "fp8"), ("tp 2, cfg", "fp8")]
)
def test_ranks_send_what_the_formula_says(monkeypatch: pytest.MonkeyPatch, mode: str, quantization: str) -> None:
    seed = random.randrange(2**32)
    source = random.Random(seed)
    jobs = [replace(job, steps=1) for job in random_jobs(source, source.randint(1, 4))]
    degrees = EngineConfig(**MODES[mode]).degrees
    meshes, counters = zip(*map(counting, thread_meshes(degrees, DEADLINE_S)), strict=True)
    monkeypatch.setattr("tests.engine_runs.thread_meshes", lambda *_, **__: meshes)

    def step(rank: Rank) -> None:
        rank.execute(Step(0, start=tuple(jobs)))
        counters[rank.model.mesh.world.rank].sent = Traffic()
        rank.execute(Step(1, denoise=tuple(job.job_id for job in jobs)))
        rank.close()

    on_ranks(DEMO_CHECKPOINT, step, quantization=quantization, **MODES[mode])
    model = ModelConfig.from_folder(DEMO_CHECKPOINT)
    segments = [
        (len(ids) - PREFIX_TOKENS, model.image_tokens(job.width, job.height)) for job in jobs for ids in job.prompts
    ]
    for rank, counter in enumerate(counters):
        stated = sent_in_step(model.transformer, segments, degrees, 4, rank, fp8=quantization == "fp8")
        assert counter.sent == sum(stated, Traffic()), seed


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.sampled_from([1, 2, 4]), st.sampled_from([False, True]))
def test_shares_are_even_and_cover_all_rows(lengths: list[int], ranks: int, by_tensor: bool) -> None:
    whole, rows = Packing(lengths, torch.device("cpu")), torch.arange(sum(lengths))
    groups = thread_groups(ranks)
    shares = [RowShare(whole, *((None, group) if by_tensor else (group, None))) for group in groups]
    parts, taken = [share.own for share in shares], [share.take_own(rows) for share in shares]
    assert sum(part.tokens for part in parts) == whole.tokens
    assert max(part.tokens for part in parts) == -(-whole.tokens // ranks)
    assert torch.equal(torch.cat([part.row_segments for part in parts]), whole.row_segments)
    assert torch.equal(torch.cat(taken), rows)
    assert [len(each) for each in taken] == [part.tokens for part in parts]
    assert all(group.shares(whole.tokens) == [part.tokens for part in parts] for group in groups)
    assert [sum(lengths) for lengths in zip(*(part.lengths for part in parts), strict=True)] == list(whole.lengths)
    assert all(share.multiplied is whole if by_tensor else share.multiplied is share.own for share in shares)


@pytest.mark.parametrize("degrees", [{"tp": 2}, {"tp": 2, "sp": 2}])
def test_a_text_encoder_that_is_whole_on_every_rank(
    rank_groups: RankGroups,
    of_one_rank: Callable[..., list[Picture]],
    monkeypatch: pytest.MonkeyPatch,
    degrees: dict[str, int],
) -> None:
    """As on GPUs that have memory for it."""

    def look(rank: Rank) -> tuple[int, int]:
        held = sum(parameter.nbytes for parameter in rank.model.text_encoder.parameters())
        return held, rank.model.offload.plan.weights

    jobs = random_jobs(random.Random(11), 2)
    alone = of_one_rank(tuple(jobs))
    (whole, _), *_ = rank_groups.on_ranks(DEMO_CHECKPOINT, look)
    (part, planned_split), *_ = rank_groups.on_ranks(DEMO_CHECKPOINT, look, **degrees)
    monkeypatch.setattr(RankModel, "_has_room_for_whole_text_encoder", lambda *_: True)
    with closing(RankGroup(DEMO_CHECKPOINT, **degrees)) as group:
        for one, other in zip(alone, group.run_jobs(jobs), strict=True):
            assert relative_error(other.latents, one.latents) <= TOLERANCE
        held_and_planned = group.on_ranks(look)
    for held, planned in held_and_planned:
        assert held == whole > part
        assert planned - planned_split >= 0.9 * (whole - part), "the plan counts what is held, up to alignment"
