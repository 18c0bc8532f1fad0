"""What diffusers makes of a request: the answer that the engine must give too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class Request:
    """A request as a user states it."""

    prompt: str
    width: int = 128
    height: int = 128
    steps: int = 4
    guidance: float = 0.0
    negative_prompt: str = ""
    mu: float | None = None
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Picture:
    """One image of a request: packed final latents (image_tokens, in_channels) float32, and uint8 (H, W, 3)."""

    latents: torch.Tensor
    image: np.ndarray


def load_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Krea2Pipeline:
    return _load_pipeline(folder, dtype)


def expected_pictures(folder: Path, request: Request, dtype: torch.dtype = torch.float32) -> list[Picture]:
    """Run diffusers' pipeline."""
    latents, images = _run_pipeline(folder, request, dtype, output_type="pil")
    return [Picture(tokens.float(), np.asarray(image)) for tokens, image in zip(latents, images, strict=True)]


def expected_latents(
    folder: Path,
    request: Request,
    dtype: torch.dtype = torch.float32,
    noise: torch.Tensor | None = None,
    *,
    text_tokens: int = 512,
) -> list[torch.Tensor]:
    """As `expected_pictures`, without decoding what it gives. `noise`: packed starting latents, instead of what
    the seeds give. text_tokens: to which the prompts are cut or filled up; what fills them up is masked, and takes most
    of the time.
    """
    latents, _ = _run_pipeline(
        folder, request, dtype, output_type="latent", latents=noise, max_sequence_length=text_tokens
    )
    return list(latents.float())


def packed_noise(folder: Path, request: Request, dtype: torch.dtype) -> torch.Tensor:
    """The starting latents that the pipeline draws in `dtype`, (images, image_tokens, in_channels)."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds]
    return load_pipeline(folder, dtype).prepare_latents(
        len(generators), 16, request.height, request.width, dtype, torch.device("cpu"), generators
    )


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max|a − b| / max(1, max|b|), in which every tolerance is stated. NaN counts as infinitely wrong."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} is not {tuple(theirs.shape)}"
    ours, theirs = ours.double(), theirs.double()
    error = (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
    return error if error == error else float("inf")


def _run_pipeline(
    folder: Path, request: Request, dtype: torch.dtype, **options: Any
) -> tuple[torch.Tensor, Sequence[Any]]:
    """The final latents (images, image_tokens, in_channels), and what the pipeline gives with these options."""
    pipeline = load_pipeline(folder, dtype)
    seen: dict[str, torch.Tensor] = {}

    def keep_latents(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        seen["latents"] = tensors["latents"]
        return {}

    before = pipeline.scheduler, pipeline.config.is_distilled
    if request.mu is not None:
        # a schedule whose shift is the same at every resolution: diffusers has no argument for mu
        config = pipeline.scheduler.config
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, base_shift=request.mu, max_shift=request.mu)
        pipeline.register_modules(scheduler=scheduler)
        pipeline.register_to_config(is_distilled=False)
    try:
        images = pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            num_images_per_prompt=len(request.seeds),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in request.seeds],
            callback_on_step_end=keep_latents,
            **options,
        ).images
    finally:
        pipeline.register_modules(scheduler=before[0])
        pipeline.register_to_config(is_distilled=before[1])
    return seen["latents"], images


@lru_cache(maxsize=8)
def _load_pipeline(folder: Path, dtype: torch.dtype) -> Krea2Pipeline:
    pipeline = Krea2Pipeline.from_pretrained(folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
