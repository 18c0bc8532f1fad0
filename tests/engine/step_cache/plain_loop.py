"""Forecasts and gating in a plain loop: an image by itself, each of its halves in a forward of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from engine.rank.rank import Rank
from engine.step import Job


@dataclass
class Told:
    """What the loop made: latents, which halves ran in each step, and where each velocity leads without noise."""

    latents: torch.Tensor
    ran: list[tuple[bool, ...]] = field(default_factory=list)
    clean: list[torch.Tensor] = field(default_factory=list)


@dataclass
class _Half:
    known: list[tuple[float, torch.Tensor]] = field(default_factory=list)
    in_a_row: int = 0
    saved: int = 0


def plain_loop(rank: Rank, job: Job) -> Told:
    """Make the image of a job whose steps may be forecast. The rank holds its picture, if there is one."""
    (state,), _ = rank.starter.start([replace(job, cache=None, guidance_window=(0.0, 1.0))])
    halves = [_Half() for _ in state.texts]
    difference: torch.Tensor | None = None
    told = Told(state.latents)
    for step in range(job.steps):
        sigma, sigma_next = state.schedule.sigmas[step : step + 2]
        fraction = (job.skipped_steps + step) / (job.skipped_steps + job.steps)
        guided = job.guidance_window[0] <= fraction < job.guidance_window[1]
        velocities, ran = list[torch.Tensor](), list[bool]()
        for index, half in enumerate(halves):
            if index == 1 and not guided:
                ran.append(False)
                continue
            ran.append(not _saves(job, step, half))
            if ran[-1]:
                (velocity,) = rank.denoiser.predict([(state, index)])
                half.known.append((sigma, velocity))
                half.in_a_row = 0
            else:
                assert job.cache is not None
                velocity = _curve(half.known[-1 - job.cache.order :], sigma)
                half.in_a_row, half.saved = half.in_a_row + 1, half.saved + 1
            velocities.append(velocity)
        velocity = velocities[0]
        if len(velocities) == 2:
            difference = velocities[0] - velocities[1]
            velocity = velocity + job.guidance * difference
        elif len(halves) == 2 and difference is not None and job.guidance_outside == "last":
            velocity = velocity + job.guidance * difference
        clean = state.latents - sigma * velocity
        state.latents = state.latents + (sigma_next - sigma) * velocity
        if state.kept is not None:
            state.latents = state.kept.put_back(state.latents, sigma, sigma_next)
            clean = state.kept.put_back(clean, sigma, 0.0)
        state.step += 1
        told.ran.append(tuple(ran))
        told.clean.append(clean)
    told.latents = state.latents
    return told


def _saves(job: Job, step: int, half: _Half) -> bool:
    cache = job.cache
    if cache is None or step < cache.warmup_steps or step == job.steps - 1 or not half.known:
        return False
    if step == job.steps - 2 and half.in_a_row:
        return False
    return half.in_a_row < cache.max_consecutive and half.saved < cache.max_cached


def _curve(known: list[tuple[float, torch.Tensor]], sigma: float) -> torch.Tensor:
    """The polynomial through all points, by its coefficients, in float64."""
    matrix = np.vander([place for place, _ in known])
    values = torch.stack([value for _, value in known]).double()
    coefficients = torch.linalg.solve(torch.tensor(matrix), values.flatten(1))
    return (torch.tensor(np.vander([sigma], len(known))) @ coefficients).reshape(values[0].shape).float()
