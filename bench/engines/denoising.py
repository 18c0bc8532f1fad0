"""Images that a rank makes in this process, for comparing one way of computing with another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.rank.rank import Rank
from engine.rank.sampling import draw_noise
from engine.step import Job, Step

# What every precision starts from: noise that is drawn in float32 is another noise.
NOISE_DTYPE = torch.bfloat16


def final_latents(rank: Rank, jobs: Sequence[Job], *, decode: bool = False) -> list[torch.Tensor]:
    """The final latents of jobs with equal step counts, stepping together: (image tokens, in_channels) float32 each,
    on the host. With `decode` the rank's `on_image` gets the images; all have come when the rank is closed.

    The rank must be new.
    """
    everyone = tuple(job.job_id for job in jobs)
    rank.execute(Step(0, start=tuple(jobs))).wait()
    with torch.inference_mode():
        for job in jobs:
            noise = draw_noise(job.seed, job.width, job.height, rank.model.config, NOISE_DTYPE)
            rank.jobs[job.job_id].latents.copy_(noise)
    (steps,) = {job.steps for job in jobs}
    for step in range(steps):
        rank.execute(Step(1 + step, denoise=everyone)).wait()
    latents = [rank.jobs[job_id].latents.float().cpu() for job_id in everyone]
    rank.execute(Step(1 + steps, decode=everyone if decode else (), release=() if decode else everyone)).wait()
    return latents
