"""Forecasts of velocities and guidance that is left out, in one batch, against a plain loop for each image."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.config.demo_checkpoints import DEMO_CHECKPOINT, DEMO_LORAS
from engine.model.transformer import Transformer
from engine.rank.denoiser import Denoiser
from engine.rank.rank import Rank
from engine.rank.sampling import guide
from engine.step import Adapter, Job, Picture
from engine.step_cache.settings import StepCache
from tests.engine.rank.short_of_memory import OutOfMemory, Ranked
from tests.engine.step_cache.plain_loop import plain_loop
from tests.engine_runs import RankGroups, jobs_of
from tests.oracle import Request, relative_error
from tests.step_scripts import pixels_of

ALONE = 2e-5  # an image in a batch against alone, as in the design
SPLIT = 1e-4  # ranks against one rank
LINE = StepCache("velocity", warmup_steps=2, max_consecutive=2, order=1, max_cached=200)
SAME = replace(LINE, order=0, warmup_steps=1, max_consecutive=1)
PARABOLA = replace(LINE, order=2, warmup_steps=3, max_cached=2)
LORA = Adapter(1, str(DEMO_LORAS["demo-outlined"]))
PICTURE = Picture(9, 64, 48, masked=True)
STEPS = 8
SIGMAS = (0.98, 0.9, 0.8, 0.72, 0.6, 0.4, 0.2, 0.05)


def make_jobs() -> list[Job]:
    """Guided and not; saved in every way and not at all; one of a masked picture, one with a LoRA."""
    guided = Request(
        "a red circle", guidance=2.0, negative_prompt="rain and snow", width=64, height=48, steps=STEPS, seeds=range(6)
    )
    plain = Request("a green star on a black background", width=48, height=48, steps=STEPS, seeds=(7, 8), sigmas=SIGMAS)
    jobs = jobs_of(DEMO_CHECKPOINT, [guided, plain])
    jobs[1] = replace(jobs[1], cache=LINE, guidance_window=(0.2, 0.8))
    jobs[2] = replace(jobs[2], guidance_window=(0.0, 0.5), guidance_outside="last", loras=((1, 0.7),))
    jobs[3] = replace(jobs[3], cache=PARABOLA, guidance_window=(0.2, 0.7), guidance_outside="last")
    jobs[4] = replace(jobs[4], cache=LINE, picture=PICTURE, skipped_steps=2, steps=STEPS - 2)
    jobs[5] = replace(jobs[5], cache=SAME)
    jobs[7] = replace(jobs[7], cache=LINE)
    return jobs


def loops(rank: Rank, jobs: Sequence[Job]) -> list[Any]:
    """What the plain loop tells of each, on one rank."""
    rank.adapters.load(LORA)
    rank.pictures.encode(PICTURE, pixels_of(PICTURE))
    try:
        return [plain_loop(rank, job) for job in jobs]
    finally:
        rank.pictures.forget([PICTURE.picture_id])
        rank.adapters.unload(LORA.adapter_id)
        rank.starter.forget(LORA.adapter_id)


def test_each_image_of_a_batch_is_what_a_plain_loop_makes_of_it(
    rank_groups: RankGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs()
    (expected,) = rank_groups.on_ranks(DEMO_CHECKPOINT, lambda rank: loops(rank, jobs))
    ran = list[tuple[tuple[int, tuple[int, ...]], ...]]()
    step = Denoiser.step

    def watched(self: Denoiser, states: Any) -> Any:
        previews = step(self, states)
        ran.append(self.blocks_run)
        return previews

    monkeypatch.setattr(Denoiser, "step", watched)
    found = rank_groups.run_jobs(DEMO_CHECKPOINT, jobs, adapters=[LORA], pixels={9: pixels_of(PICTURE)})
    for job, picture, told in zip(jobs, found, expected, strict=True):
        assert relative_error(picture.latents, told.latents) <= ALONE, job
        blocks = [dict(each)[job.job_id] for each in ran[: job.steps] if job.job_id in dict(each)]
        planned = job.job_id not in (0, 6)
        assert blocks == [tuple(6 * each for each in halves) for halves in told.ran] * planned
    saved = sum(not each for told in expected for halves in told.ran for each in halves)
    assert saved == 34  # of 9, 4, 8, 4, 6 and 3 by image


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"cfg_parallel": True}, id="cfg"),
        pytest.param({"tp": 2}, id="tp 2", marks=pytest.mark.slow),
        pytest.param({"sp": 2}, id="sp 2", marks=pytest.mark.slow),
        pytest.param({"tp": 2, "cfg_parallel": True}, id="tp 2, cfg", marks=pytest.mark.slow),
    ],
)
def test_ranks_forecast_what_one_rank_does(rank_groups: RankGroups, options: dict[str, Any]) -> None:
    """With guidance split a half may be alone in a step: the other group has nothing, or shares its tokens. Also that
    all ranks end with the same latents."""
    jobs, pixels = make_jobs(), {9: pixels_of(PICTURE)}
    expected = rank_groups.run_jobs(DEMO_CHECKPOINT, jobs, adapters=[LORA], pixels=pixels)
    for chosen in ([1], range(len(jobs))):
        some = [jobs[i] for i in chosen]
        found = rank_groups.run_jobs(DEMO_CHECKPOINT, some, adapters=[LORA], pixels=pixels, **options)
        for index, picture in zip(chosen, found, strict=True):
            assert relative_error(picture.latents, expected[index].latents) <= SPLIT, jobs[index]


def test_a_job_that_asks_for_nothing_is_to_the_bit_what_it_was(rank_groups: RankGroups) -> None:
    """Guided and not, by the loop that was there before: all segments in one forward, and Euler's step."""
    jobs = [make_jobs()[index] for index in (0, 6)]

    def before(rank: Rank) -> list[torch.Tensor]:
        states, _ = rank.starter.start(jobs)
        for _ in range(STEPS):
            velocities = iter(rank.denoiser.predict([(state, i) for state in states for i in range(len(state.texts))]))
            for state in states:
                velocity = next(velocities)
                if len(state.texts) == 2:
                    velocity = guide(velocity, next(velocities), state.job.guidance)
                sigma, sigma_next = state.schedule.sigmas[state.step : state.step + 2]
                state.latents = state.latents.add(velocity, alpha=sigma_next - sigma)
            for state in states:
                assert state.memory is None
                state.step += 1
        return [state.latents for state in states]

    (expected,) = rank_groups.on_ranks(DEMO_CHECKPOINT, before)
    found = rank_groups.run_jobs(DEMO_CHECKPOINT, jobs)
    assert all(torch.equal(picture.latents, latents) for picture, latents in zip(found, expected, strict=True))


def test_a_step_of_forecasts_alone_runs_no_forward(rank_groups: RankGroups, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [replace(job, cache=LINE) for job in (make_jobs()[0], make_jobs()[6])]
    segments, forward = list[int](), Transformer.forward

    def watched(self: Transformer, text: list[torch.Tensor], *rest: Any, **options: Any) -> torch.Tensor:
        segments.append(len(text))
        return forward(self, text, *rest, **options)

    monkeypatch.setattr(Transformer, "forward", watched)
    rank_groups.run_jobs(DEMO_CHECKPOINT, jobs)
    assert segments == [3] * 5  # of 8 steps: two that are computed, two saved, one, one, and the last two


def test_previews_come_from_forecasts_too() -> None:
    """Of a masked picture, whose kept parts are in them."""
    job = replace(make_jobs()[4], job_id=0, preview_every=1)
    ranked = Ranked()
    ranked.rank.decoder.previews.learn(torch.randn(16, 8, 8), torch.zeros(64, 64, 3, dtype=torch.uint8))
    with torch.inference_mode():
        (told,) = loops(ranked.rank, [job])
    drawn, shown = list[torch.Tensor](), ranked.rank.denoiser._draw_preview
    assert shown is not None

    def watched(job: Job, latents: torch.Tensor) -> torch.Tensor | None:
        drawn.append(latents)
        return shown(job, latents)

    ranked.rank.denoiser._draw_preview = watched
    ranked.run([job])
    ranked.rank.close()
    assert [halves[0] for halves in told.ran].count(False) == 2
    assert len(drawn) == job.steps - 1
    for latents, clean in zip(drawn, told.clean, strict=False):
        assert relative_error(latents, clean) <= ALONE


def test_wherever_memory_runs_out_a_step_is_taken_as_if_it_had_not_begun() -> None:
    """Where all images are computed, where some are forecast, and in the midst of what is noted of them."""
    jobs = [make_jobs()[index] for index in (0, 1, 3)]
    ranked = Ranked()
    counting = [OutOfMemory() for _ in range(STEPS)]
    expected = ranked.run(jobs, counting)
    told = list[Any]()
    execute = ranked.execute

    def watched(mode: Any = None, **parts: Any) -> Any:
        told.append(execute(mode, **parts))
        return told[-1]

    ranked.execute = watched  # type: ignore[method-assign]
    source = random.Random(29)
    ranked.rank.prompts._kept.clear()
    counts = [mode.operations for mode in counting]  # of which those that note velocities are among the last
    points = [
        count - source.randint(1, min(30, count)) if i % 2 else source.randrange(count)
        for i, count in enumerate(counts)
    ]
    latents = ranked.run(jobs, [OutOfMemory([point]) for point in points])
    assert not ranked.failures
    for job in jobs:
        assert relative_error(latents[job.job_id], expected[job.job_id]) <= ALONE
    steps = [times for times in told if times.blocks_run]
    assert sum(times.one_by_one for times in steps) >= STEPS - 2  # layouts that are known by then take no operations
    ran = [dict(times.blocks_run)[1] for times in steps]  # of the image that is forecast by a line in a window
    assert ran == [(6, 0), (6, 0), (0, 6), (0, 0), (6, 0), (0, 6), (6, 0), (6, 0)]
    for _ in range(2 * len(jobs)):
        ranked.image()
    ranked.rank.close()
