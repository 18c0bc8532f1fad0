"""What the engine makes of the same requests, on one rank or on each of several: final latents, and the stages."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch

from bench.verify.oracle.recording import on_host
from bench.verify.subject.stages import (
    SCALED,
    Tensors,
    Traced,
    latents_of,
    stages_of_text,
    stages_of_transformer,
    stages_of_vae,
)
from engine.rank.job_state import JobState
from engine.rank.rank import Rank
from engine.step import Job, Step

IMAGES_AT_ONCE = 4  # that step together
NOISE = "noise"
VELOCITY = "velocity of a whole forward"
EULER = "guidance and Euler step {}"
PIXELS = "pixels"
IMAGES = "images"

Velocities = Callable[[Sequence[tuple[JobState, int]]], list[torch.Tensor]]


@dataclass(frozen=True)
class Steps:
    """A job whose steps are given what diffusers had: before each step its latents, (steps, image tokens, channels),
    and for all of the job's prompts the velocities that the step takes, (steps, prompts, image tokens, channels).
    at: the step whose velocity is computed; before: from these latents, empty if diffusers' are not known."""

    job: Job
    latents: torch.Tensor
    velocities: torch.Tensor
    at: int
    before: torch.Tensor


@dataclass
class Results:
    """latents: of each job after every step. noise: what it began with. stages: by name. failures: the traceback, of
    what could not be computed, by name. note: how the engine computed, for people."""

    noise: list[torch.Tensor] = field(default_factory=list)
    latents: list[list[torch.Tensor]] = field(default_factory=list)
    stages: dict[str, torch.Tensor] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    note: str = ""


class Runner:
    """A rank that executes one job, or some at once, after another."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self._number = 0

    def images(self, jobs: Sequence[Job], results: Results, say: Callable[[str], None], *, catch: bool) -> None:
        """Make the images from the engine's own noise. catch: whether the stages go on if that fails."""
        try:
            self._images(jobs, results, say)
        except Exception:
            if not catch:
                raise
            results.failures[IMAGES] = traceback.format_exc()

    def _images(self, jobs: Sequence[Job], results: Results, say: Callable[[str], None]) -> None:
        for first in range(0, len(jobs), IMAGES_AT_ONCE):
            some = jobs[first : first + IMAGES_AT_ONCE]
            say(f"the engine: images {first + 1} to {first + len(some)} of {len(jobs)}")
            ids = tuple(job.job_id for job in some)
            self._execute(start=tuple(some))
            results.noise += [self.rank.jobs[job_id].latents.float().cpu().clone() for job_id in ids]
            made: list[list[torch.Tensor]] = [[] for _ in some]
            for _ in range(max(job.steps for job in some)):
                self._execute(denoise=ids)
                for each, job_id in zip(made, ids, strict=True):
                    each.append(on_host(self.rank.jobs[job_id].latents))
            results.latents += made
            self._execute(release=ids)

    def stages(
        self, wanted: Collection[str], traced: Traced, inputs: Tensors, results: Results, *, catch: bool
    ) -> None:
        """Compute every stage that is wanted. catch: go on after one that fails; not with several ranks, which would
        wait for it."""
        rank = self.rank
        parts = [stages_of_text(rank, traced, inputs), stages_of_transformer(rank, traced, inputs)]
        decodes = rank.model.mesh.world.size == 1 and SCALED in wanted
        if decodes:
            parts.append(stages_of_vae(rank, traced, inputs))
        for name, compute in chain(*parts):
            if name in wanted:
                self._keep(name, compute, results, catch=catch)
        if decodes:
            self._keep(PIXELS, partial(self._pixels, traced, inputs), results, catch=catch)

    def steps(self, steps: Steps, results: Results, *, catch: bool) -> None:
        """Compute what the sampler makes of diffusers' velocities, and a velocity."""
        for index in range(steps.job.steps):
            self._keep(EULER.format(index + 1), partial(self._forced_step, steps, index), results, catch=catch)
        if steps.before.numel():
            self._keep(VELOCITY, partial(self._velocity, steps), results, catch=catch)

    def _keep(self, name: str, compute: Callable[[], torch.Tensor], results: Results, *, catch: bool) -> None:
        try:
            with torch.inference_mode():
                results.stages[name] = on_host(compute())
        except Exception:
            if not catch:
                raise
            results.failures[name] = traceback.format_exc()

    def _pixels(self, traced: Traced, inputs: Tensors) -> torch.Tensor:
        assert self.rank.model.vae is not None
        return self.rank.model.vae.decode_pixels(latents_of(self.rank, traced, inputs[SCALED]))[0]

    def _forced_step(self, steps: Steps, index: int) -> torch.Tensor:
        """The latents after a step from diffusers' latents with diffusers' velocities."""
        self._begin(steps, index)
        after = self._step(steps, steps.latents[index], steps.velocities[index])
        self._execute(release=(steps.job.job_id,))
        return after

    def _velocity(self, steps: Steps) -> torch.Tensor:
        """What one step of the engine's own adds to the latents, divided by what it adds of the velocity."""
        self._begin(steps, steps.at)
        after = self._step(steps, steps.before, None)
        sigmas = self.rank.jobs[steps.job.job_id].schedule.sigmas
        self._execute(release=(steps.job.job_id,))
        return (after.double() - steps.before.double()) / (sigmas[steps.at + 1] - sigmas[steps.at])

    def _begin(self, steps: Steps, index: int) -> None:
        """Start the job and do the steps before this one, whatever they give."""
        self._execute(start=(steps.job,))
        for before in range(index):
            self._step(steps, steps.latents[before], steps.velocities[before])

    def _step(self, steps: Steps, latents: torch.Tensor, velocities: torch.Tensor | None) -> torch.Tensor:
        """One step from these latents; with these velocities in place of the transformer's, if they are given."""
        rank, job_id = self.rank, steps.job.job_id
        with torch.inference_mode():
            rank.jobs[job_id].latents.copy_(latents)
        own: Velocities = rank.denoiser.predict
        if velocities is not None:
            # In place of all that computes them, since which rank computes which depends on the mode.
            rank.denoiser.predict = lambda _: list(velocities.to(rank.model.device))  # type: ignore[assignment]
        try:
            self._execute(denoise=(job_id,))
        finally:
            rank.denoiser.predict = own  # type: ignore[assignment]
        return on_host(rank.jobs[job_id].latents)

    def _execute(
        self, start: tuple[Job, ...] = (), denoise: tuple[int, ...] = (), release: tuple[int, ...] = ()
    ) -> None:
        step = Step(self._number, start=start, denoise=denoise, release=release)
        self._number += 1  # the rank counts a step that fails too
        self.rank.execute(step).wait()
