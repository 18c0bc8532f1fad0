"""What a rank keeps of each image that it makes, and how one begins."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch

from engine.device.devices import pinned, to_device
from engine.lora.adapters import DENOISING, TEXT, TIME, Adapters
from engine.lora.side_path import Loras
from engine.model.transformer import TimeModulation
from engine.pictures.encoded_picture import KeptParts
from engine.pictures.picture_encoder import PictureEncoder
from engine.rank.build import RankModel
from engine.rank.prompt_encoder import PromptEncoder
from engine.rank.sampling import default_mu, draw_noise, make_sigmas
from engine.step import Job
from engine.step_cache.memory import StepMemory
from engine.step_cache.step_plan import plan_of

_CACHED_SCHEDULES = 8  # one of 52 steps is 8 MB at the real size


@dataclass(frozen=True)
class Schedule:
    """What the steps of an image begin from: noise levels, one more than the steps that are run, and each step's time
    modulation, (steps, 6 · width) and (steps, width) float32."""

    sigmas: tuple[float, ...]
    modulation: TimeModulation


_NO_STEPS = Schedule((0.0,), TimeModulation(torch.empty(0), torch.empty(0)))  # of a picture that is decoded as it is


@dataclass
class JobState:
    """One image between its first step and its last."""

    job: Job
    grid: tuple[int, int]  # rows and columns of image tokens
    loras: Loras  # what changes a denoise step
    latents: torch.Tensor  # (image tokens, in_channels) float32
    texts: tuple[torch.Tensor, ...]  # (text tokens, width) of the prompt and, when guided, of the negative prompt
    schedule: Schedule
    kept: KeptParts | None = None  # what stays of a masked picture
    memory: StepMemory | None = None  # where steps are saved, or guidance left out
    step: int = 0

    @property
    def running(self) -> Sequence[int]:
        """The halves, texts by index, that run blocks in the next step: all of them, or at least the first ones."""
        return range(len(self.texts)) if self.memory is None else self.memory.running(self.step)

    def has_preview(self, step: int) -> bool:
        """Whether a preview is due after this many steps."""
        every = self.job.preview_every
        return every > 0 and step % every == 0 and step < self.job.steps


class JobStarter:
    """Begins images: encodes their prompts while their noise is drawn in a thread of its own."""

    def __init__(self, model: RankModel, prompts: PromptEncoder, adapters: Adapters, pictures: PictureEncoder) -> None:
        self._model, self._prompts, self._adapters, self._pictures = model, prompts, adapters, pictures
        self._schedule = lru_cache(maxsize=_CACHED_SCHEDULES)(self._make_schedule)
        self._noise = ThreadPoolExecutor(1, thread_name_prefix="noise")

    def start(self, jobs: Sequence[Job]) -> tuple[list[JobState], int]:
        """Make the jobs' states before their first step. Also returns the number of prompt tokens that were encoded."""
        noises = [self._noise.submit(self._draw, job) for job in jobs]  # while the prompts are encoded
        try:
            prompts = [[(ids, self._adapters.of(job.loras, TEXT)) for ids in job.prompts] for job in jobs]
            texts, encoded_tokens = self._prompts.encode([prompt for each in prompts for prompt in each])
            states, config = [], self._model.config
            for job, its_prompts, noise in zip(jobs, prompts, noises, strict=True):
                mu = default_mu(config, config.image_tokens(job.width, job.height)) if job.mu is None else job.mu
                schedule = _NO_STEPS
                if job.steps:
                    loras = self._adapters.of(job.loras, TIME)
                    schedule = self._schedule(job.steps, job.skipped_steps, mu, job.sigmas, loras)
                latents, kept = to_device(noise.result(), self._model.device), None
                if job.picture is not None:
                    picture = self._pictures.get(job.picture)
                    kept = None if picture.mask is None else KeptParts(picture, noise=latents)
                    latents = picture.with_noise(latents, schedule.sigmas[0])
                state = JobState(
                    job=job,
                    grid=(job.height // config.size_multiple, job.width // config.size_multiple),
                    latents=latents,
                    loras=self._adapters.of(job.loras, DENOISING),
                    texts=tuple(texts[prompt] for prompt in its_prompts),
                    schedule=schedule,
                    kept=kept,
                    memory=_make_memory(job),
                )
                states.append(state)
            return states, encoded_tokens
        finally:
            for noise in noises:  # where an error has left some undrawn
                noise.cancel()

    def forget(self, adapter_id: int) -> None:
        """Drop what was made with this adapter."""
        self._prompts.forget(adapter_id)
        self._schedule.cache_clear()

    def close(self) -> None:
        """Return when no noise is being drawn."""
        self._noise.shutdown()

    def _draw(self, job: Job) -> torch.Tensor:
        """The image's noise, (image tokens, in_channels) float32, where a copy to the device does not wait for it; none
        of an image without steps."""
        model = self._model
        if not job.steps:
            return torch.empty(0)
        return pinned(draw_noise(job.seed, job.width, job.height, model.config, model.dtype), model.device)

    def _make_schedule(
        self, steps: int, skipped: int, mu: float, given: tuple[float, ...] | None, loras: Loras
    ) -> Schedule:
        sigmas = make_sigmas(skipped + steps, mu, given)[skipped:]
        scale = self._model.config.schedule.num_train_timesteps
        timesteps = sigmas[:-1] * scale / scale  # as the references compute it, to the last bit
        with self._adapters.everywhere(loras):
            modulation = self._model.transformer.encode_timesteps(to_device(timesteps, self._model.device))
        return Schedule(tuple(sigmas.tolist()), modulation)


def _make_memory(job: Job) -> StepMemory | None:
    plan = plan_of(job)
    return StepMemory(plan, job.cache, reuses_difference=job.guidance_outside == "last") if plan else None
