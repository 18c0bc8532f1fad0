"""diffusers' pipeline: loaded with some parts left out, and an image made by it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
import transformers
from diffusers import Krea2Pipeline

from bench.verify.oracle.loading import check_finite, load_parts
from bench.verify.oracle.recording import Made, on_host
from bench.verify.subject.models import Model, Request

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHTS = ("text_encoder", "transformer", "vae")  # the parts that have any
Say = Callable[[str], None]
Encoded = dict[str, tuple[torch.Tensor, torch.Tensor]]  # states and mask by prompt, as `encode_prompt` gives them

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


@contextmanager
def open_pipeline(model: Model, dtype: str, device: torch.device, without: Sequence[str], say: Say) -> Iterator[Any]:
    """The pipeline with some parts left out, while this is open."""
    say(f"diffusers in {dtype}: loading all but {', '.join(without)}")
    wanted = [part for part in WEIGHTS if part not in without]
    pipeline = Krea2Pipeline.from_pretrained(
        model.folder,
        torch_dtype=DTYPES[dtype],
        local_files_only=True,
        **dict.fromkeys(without),
        **load_parts(model, wanted, DTYPES[dtype]),
    )
    pipeline.set_progress_bar_config(disable=True)
    try:
        with torch.no_grad():
            pipeline.to(device)
            for part in wanted:
                check_finite(model, part, getattr(pipeline, part))
            yield pipeline
    finally:
        for name in WEIGHTS:
            setattr(pipeline, name, None)  # whoever still holds the pipeline holds no weights
        release(device)


def release(device: torch.device) -> None:
    """Let go of what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def draw_noise(pipeline: Any, request: Request, dtype: torch.dtype) -> torch.Tensor:
    """As the pipeline draws it: (1, image tokens, in_channels)."""
    channels = pipeline.transformer.config.in_channels // pipeline.patch_size**2
    generator = torch.Generator("cpu").manual_seed(request.seed)
    size = request.height, request.width
    return pipeline.prepare_latents(1, channels, *size, dtype, torch.device("cpu"), generator)


def make(
    pipeline: Any, request: Request, encoded: Encoded, noise: torch.Tensor, *, output_type: str
) -> tuple[Made, Any]:
    """The image's latents, and whatever the pipeline gives."""
    latents: list[torch.Tensor] = []
    velocities: list[torch.Tensor] = []

    def look(open_pipeline: Any, _step: int, _time: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        latents.append(on_host(tensors["latents"][0]))
        return {}

    states, mask = encoded[request.prompt]
    texts = {"prompt_embeds": states, "prompt_embeds_mask": mask}
    if request.guidance > 0:
        states, mask = encoded[request.negative_prompt]
        texts |= {"negative_prompt_embeds": states, "negative_prompt_embeds_mask": mask}
    hook = pipeline.transformer.register_forward_hook(
        lambda _module, _arguments, output: velocities.append(on_host(output[0][0]))
    )
    try:
        output = pipeline(
            **texts,
            latents=noise,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            callback_on_step_end=look,
            output_type=output_type,
        )
    finally:
        hook.remove()
    each = 1 + (request.guidance > 0)
    by_step = [velocities[first : first + each] for first in range(0, len(velocities), each)]
    return Made(on_host(noise[0]), latents, on_host(pipeline.scheduler.sigmas), by_step), output.images
