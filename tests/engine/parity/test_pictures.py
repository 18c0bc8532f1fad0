"""Images that begin from pictures, against diffusers: the same latents, at every degree and in every batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config.demo_checkpoints import DEMO_CHECKPOINT, DEMO_LORAS
from engine.pictures.pixels import Pixels
from engine.pictures.strength import STRENGTH_STEPS, steps_of
from engine.step import Adapter, Job
from engine.step import Picture as StepPicture
from tests.engine.parity.test_parity import BATCH_TOLERANCE, CAPTION, LATENT_TOLERANCE, MODES, TEXT_TOKENS
from tests.engine_runs import RankGroups, jobs_of
from tests.oracle import (
    Edit,
    Picture,
    Request,
    decoded,
    encoded,
    expected_edit,
    load_pipeline,
    relative_error,
    shift_of,
    velocities,
)


def draw_picture(width: int, height: int, seed: int) -> np.ndarray:
    """Blots of colour with a grain: uint8 (height, width, 3)."""
    source = np.random.default_rng(seed)
    blots = source.integers(0, 256, (-(-height // 24), -(-width // 24), 3)).repeat(24, axis=0).repeat(24, axis=1)
    grain = source.integers(-9, 10, (height, width, 3))
    return (blots[:height, :width] + grain).clip(0, 255).astype(np.uint8)


def draw_mask(width: int, height: int, seed: int) -> np.ndarray:
    """A box of white on black, whose sides are anywhere, between latent pixels too: uint8 (height, width)."""
    source = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    left, right = sorted(source.integers(0, width + 1, 2))
    top, bottom = sorted(source.integers(0, height + 1, 2))
    mask[top:bottom, left:right] = 255
    return mask


def begin(jobs: Sequence[Job], edit: Edit, picture_id: int) -> list[Job]:
    """The jobs of a request that begins from a picture."""
    height, width, _ = edit.rgb.shape
    picture = StepPicture(picture_id, width, height, masked=edit.mask is not None)
    return [
        replace(job, picture=picture, steps=run, skipped_steps=skipped)
        for job in jobs
        for run, skipped in [steps_of(job.steps, edit.strength, edit.rule)]
    ]


@dataclass(frozen=True, eq=False)
class Case:
    """A request for images that begin from a picture."""

    request: Request
    edit: Edit


def random_cases(source: random.Random) -> list[Case]:
    """Two of a picture alone and two with a mask, of which one each is guided; two have pictures of one size."""
    cases, sizes = [], [(16 * source.randint(4, 9), 16 * source.randint(4, 9)) for _ in range(3)]
    for index, size in enumerate([*sizes, sizes[0]]):
        steps = source.randint(2, 5)
        falling = tuple(sorted((source.uniform(0.02, 1.0) for _ in range(steps)), reverse=True))
        request = Request(
            CAPTION,
            *size,
            steps=steps,
            sigmas=source.choice([None, falling]),
            guidance=source.choice([1.5, 3.5]) if index % 2 else 0.0,
            negative_prompt=source.choice(["", "snow"]),
            mu=source.choice([None, None, 0.4]),
            seeds=(source.randrange(2**53),),
        )
        mask = draw_mask(*size, source.randrange(2**32)) if index >= 2 else None
        rgb = draw_picture(*size, source.randrange(2**32))
        cases.append(Case(request, Edit(rgb, mask, source.choice([source.uniform(0.05, 1.0), 0.6, 1.0]))))
    return cases


SEED = random.randrange(2**32)  # of the cases, which an assertion that fails prints
CASES = random_cases(random.Random(SEED))
ALONGSIDE = [Request(CAPTION, 96, 80, 3, seeds=(5,)), Request("", 64, 112, 4, 2.0, "snow", seeds=(6,))]
# Slow are those that the random steps of `test_parallel_steps` guard in the fast run.
IN_MODES = [
    *("tp 1", "tp 2", "cfg"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("tp 4", "sp 2")),
]


@cache
def expected(folder: Path, case: Case) -> Picture:
    return expected_edit(folder, case.request, case.edit, text_tokens=TEXT_TOKENS)


def jobs_and_pixels(folder: Path, cases: Sequence[Case]) -> tuple[list[Job], dict[int, Pixels]]:
    """One job a case, which begins from a picture of the job's number."""
    jobs = jobs_of(folder, [case.request for case in cases])
    begun = [begin([job], case.edit, job.job_id)[0] for job, case in zip(jobs, cases, strict=True)]
    return begun, {job.job_id: case.edit.pixels for job, case in zip(jobs, cases, strict=True)}


def check(ours: Picture, theirs: Picture, said: object = SEED) -> None:
    assert relative_error(ours.latents, theirs.latents) <= LATENT_TOLERANCE, said
    assert np.abs(ours.image.astype(int) - theirs.image.astype(int)).max() <= 1, said


@pytest.mark.parametrize("mode", IN_MODES)
def test_pictures_and_prompts_in_one_batch_give_the_images_of_diffusers(
    turbo: Path, rank_groups: RankGroups, mode: str
) -> None:
    """And those of each alone."""
    jobs, pixels = jobs_and_pixels(turbo, CASES)
    others = [replace(job, job_id=len(jobs) + job.job_id) for job in jobs_of(turbo, ALONGSIDE)]
    joins = [0, 0, 1, 2, 0, 1]
    group = rank_groups.get(turbo, **MODES[mode])
    together = group.run_jobs([*jobs, *others], joins=joins, pixels=pixels)
    for case, picture in zip(CASES, together, strict=False):
        check(picture, expected(turbo, case))
    for job, packed in zip([*jobs, *others], together, strict=True):
        (alone,) = group.run_jobs([job], pixels=pixels)
        assert relative_error(packed.latents, alone.latents) <= BATCH_TOLERANCE, SEED


def by_definition(folder: Path, case: Case, sigmas: torch.Tensor) -> torch.Tensor:
    """Final latents, by the rules as they are stated, of noise levels that end in 0: Euler steps, after each of which
    the picture comes back where the mask is below the level that the step began at."""
    request, edit = case.request, case.edit
    rows, columns = request.height // 8, request.width // 8
    pack = load_pipeline(folder)._pack_latents
    noise = torch.randn((1, 16, rows, columns), generator=torch.Generator().manual_seed(request.seeds[0]))
    x1, x0 = (pack(each, 1, 16, rows, columns) for each in (noise, encoded(folder, edit.rgb)[None]))
    mask = torch.ones(rows, columns) if edit.mask is None else torch.from_numpy(edit.mask / 255)[::8, ::8].float()
    mask = pack(mask.expand(1, 16, rows, columns).contiguous(), 1, 16, rows, columns)
    velocity_of = velocities(folder, request, text_tokens=TEXT_TOKENS)
    x = sigmas[0] * x1 + (1 - sigmas[0]) * x0
    for sigma, after in pairwise(sigmas):
        with torch.no_grad():
            x = x + (after - sigma) * velocity_of(x, sigma)
        joined = (mask >= sigma).float()
        x = joined * x + (1 - joined) * (after * x1 + (1 - after) * x0)
    return x[0]


def schedule(folder: Path, request: Request, steps: int) -> torch.Tensor:
    """The noise levels of diffusers' scheduler, (steps + 1,)."""
    scheduler = load_pipeline(folder).scheduler
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift_of(folder, request), device="cpu")
    return scheduler.sigmas.clone()


@pytest.mark.parametrize("strength", [0.3, 0.85])
def test_full_runs_all_steps_as_comfyui_does(raw: Path, rank_groups: RankGroups, strength: float) -> None:
    """Which makes the noise levels of int(steps / denoise) steps, and takes the last steps + 1 of them."""
    request = Request(CAPTION, 96, 64, 3, seeds=(3,))
    case = Case(request, Edit(draw_picture(96, 64, 1), None, strength, "full"))
    jobs, pixels = jobs_and_pixels(raw, [case])
    assert jobs[0].steps == 3
    (ours,) = rank_groups.run_jobs(raw, jobs, pixels=pixels)
    sigmas = schedule(raw, request, int(request.steps / strength))[-(request.steps + 1) :]
    assert relative_error(ours.latents, by_definition(raw, case, sigmas)) <= LATENT_TOLERANCE


@pytest.mark.parametrize("strength", [0.55, 1.0])
def test_grey_joins_late(turbo: Path, rank_groups: RankGroups, strength: float) -> None:
    case = Case(
        Request(CAPTION, 80, 96, 6, seeds=(8,)),
        Edit(draw_picture(80, 96, 2), np.linspace(0, 255, 80 * 96).astype(np.uint8).reshape(96, 80), strength),
    )
    jobs, pixels = jobs_and_pixels(turbo, [case])
    sigmas = schedule(turbo, case.request, 6)[jobs[0].skipped_steps :]
    exact = by_definition(turbo, case, sigmas)
    hard = Case(case.request, replace(case.edit, mask=np.uint8(255) * (case.edit.mask >= 128)))
    assert relative_error(by_definition(turbo, hard, sigmas), exact) > 1000 * LATENT_TOLERANCE
    (ours,) = rank_groups.run_jobs(turbo, jobs, pixels=pixels)
    assert relative_error(ours.latents, exact) <= LATENT_TOLERANCE


def test_strength_1_is_text_to_image_to_the_bit(turbo: Path, rank_groups: RankGroups) -> None:
    request = Request(CAPTION, 96, 64, 3, guidance=2.0, seeds=(3,))
    for rule in STRENGTH_STEPS:
        jobs, pixels = jobs_and_pixels(turbo, [Case(request, Edit(draw_picture(96, 64, 1), None, 1.0, rule))])
        (ours,) = rank_groups.run_jobs(turbo, jobs, pixels=pixels)
        (without,) = rank_groups.run_requests(turbo, [request])
        assert torch.equal(ours.latents, without.latents)


def test_strength_0_is_the_picture_encoded_and_decoded(turbo: Path, rank_groups: RankGroups) -> None:
    """Whatever its mask. No prompt is encoded for it, and no step is made."""
    rgb, edits = draw_picture(96, 64, 1), {0: draw_mask(96, 64, 1), 1: None}
    for mask in edits.values():
        case = Case(Request(CAPTION, 96, 64, 3, guidance=2.0), Edit(rgb, mask, 0.0))
        (job,), pixels = jobs_and_pixels(turbo, [case])
        assert (job.steps, job.prompts) == (0, ())
        (ours,) = rank_groups.run_jobs(turbo, [job], pixels=pixels)
        latents = encoded(turbo, rgb)
        tokens = load_pipeline(turbo)._pack_latents(latents[None], 1, 16, 8, 12)
        check(ours, Picture(tokens[0], decoded(turbo, tokens, 96, 64)))


def test_a_lora_changes_an_image_of_a_picture_as_if_it_were_merged(rank_groups: RankGroups) -> None:
    """In a batch with the same picture without it."""
    file = str(DEMO_LORAS["demo-outlined"])
    case = Case(Request(CAPTION, 64, 80, 4, seeds=(3,)), Edit(draw_picture(64, 80, 1), draw_mask(64, 80, 3), 0.8))
    (plain,), pixels = jobs_and_pixels(DEMO_CHECKPOINT, [case])
    jobs = [plain, replace(plain, job_id=1, loras=((1, 1.0),))]
    without, ours = rank_groups.run_jobs(DEMO_CHECKPOINT, jobs, adapters=[Adapter(1, file)], pixels=pixels)
    (merged,) = rank_groups.run_jobs(DEMO_CHECKPOINT, [plain], pixels=pixels, merge_loras=((file, 1.0),))
    assert relative_error(ours.latents, merged.latents) <= LATENT_TOLERANCE
    assert relative_error(without.latents, merged.latents) > 100 * LATENT_TOLERANCE


def test_bfloat16_is_as_close_to_float32_as_diffusers_is(turbo: Path, rank_groups: RankGroups) -> None:
    """Of the same noise, drawn in bfloat16."""
    theirs, ours = [], []
    group = rank_groups.get(turbo, dtype="bfloat16")
    for seed in range(3):
        request = Request(CAPTION, 64, 64, 5, seeds=(seed,))
        edit = Edit(draw_picture(64, 64, seed), draw_mask(64, 64, seed), 0.7)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", drawn_in_bfloat16(torch.randn))
            exact = expected_edit(turbo, request, edit, text_tokens=TEXT_TOKENS).latents
        diffusers = expected_edit(turbo, request, edit, torch.bfloat16, text_tokens=TEXT_TOKENS).latents
        jobs, pixels = jobs_and_pixels(turbo, [Case(request, edit)])
        (picture,) = group.run_jobs(jobs, pixels=pixels)
        theirs.append((diffusers - exact).abs().mean().item())
        ours.append((picture.latents - exact).abs().mean().item())
    assert sum(theirs) > 4e-3  # otherwise nothing ran in bfloat16
    assert sum(ours) <= 1.1 * sum(theirs)


def drawn_in_bfloat16(randn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *size, dtype, **options: randn(*size, dtype=torch.bfloat16, **options).to(dtype)
