"""What a rank keeps of each image that it makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.lora.adapters import Loras
from engine.model.transformer import TimeModulation
from engine.step import Job


@dataclass(frozen=True)
class Schedule:
    """Noise levels, one more than there are steps, and what each step's time says to the model."""

    sigmas: tuple[float, ...]
    modulation: TimeModulation


@dataclass
class JobState:
    """One image between its first step and its last."""

    job: Job
    grid: tuple[int, int]
    loras: Loras  # those that change a denoise step
    latents: torch.Tensor  # (image tokens, in_channels) float32
    texts: tuple[torch.Tensor, ...]  # the prompt's features and, when guided, the negative prompt's
    schedule: Schedule
    step: int = 0

    def has_preview(self, step: int) -> bool:
        """Whether a preview is due after so many steps."""
        every = self.job.preview_every
        return every > 0 and step % every == 0 and step < self.job.steps
