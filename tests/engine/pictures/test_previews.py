"""What previews show of an image that begins from a picture."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.step import Job
from tests.engine.rank.short_of_memory import REQUESTS, Ranked, begun
from tests.engine_runs import jobs_of


def test_where_the_picture_stays_they_show_it_without_noise() -> None:
    """What is grey in the mask belongs to it until its turn comes."""
    (job, *_) = jobs_of(DEMO_CHECKPOINT, REQUESTS)
    job = replace(begun(job, 5, masked=True), preview_every=1)
    ranked = Ranked()
    rank, joined = ranked.rank, list[int]()

    def draw(drawn: Job, tokens: torch.Tensor) -> None:
        state = rank.jobs[drawn.job_id]
        assert state.kept is not None
        mask, latents = state.kept.picture.mask, state.kept.picture.latents
        assert mask is not None
        stays = mask < state.schedule.sigmas[state.step]
        assert torch.equal(tokens[stays], latents[stays])
        assert not torch.isclose(tokens[~stays], latents[~stays]).any()
        joined.append(int((~stays).sum()))

    rank.denoiser._draw_preview = draw  # type: ignore[assignment]
    ranked.run([job])
    ranked.image()
    rank.close()
    assert len(joined) == job.steps - 1
    assert 0 < joined[0] < joined[1]
