"""What diffusers makes of a request: the answer that the engine must give too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.krea2.pipeline_krea2 import calculate_shift
from diffusers.pipelines.qwenimage.pipeline_qwenimage_img2img import retrieve_latents
from PIL import Image

from engine.pictures.pixels import Pixels

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
    sigmas: tuple[float, ...] | None = None  # as many as steps

    @property
    def levels(self) -> list[float]:
        """The noise levels that the schedule shifts."""
        even = np.linspace(1.0, 1 / self.steps, self.steps).tolist()
        return even if self.sigmas is None else list(self.sigmas)


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


@dataclass(frozen=True, eq=False)
class Edit:
    """A picture that an image begins from. rgb: uint8 (height, width, 3). mask: uint8 (height, width), 255 where it is
    repainted; None for everywhere. rule: as in `engine.pictures.strength`."""

    rgb: np.ndarray
    mask: np.ndarray | None = None
    strength: float = 0.6
    rule: str = "partial"

    @property
    def pixels(self) -> Pixels:
        """As the front-end hands it to ranks."""
        height, width, _ = self.rgb.shape
        mask = None if self.mask is None else self.mask[::8, ::8].tobytes()
        return Pixels(width, height, self.rgb.tobytes(), mask)


def expected_edit(
    folder: Path, request: Request, edit: Edit, dtype: torch.dtype = torch.float32, *, text_tokens: int = 512
) -> Picture:
    """The image of a request's first seed as diffusers' QwenImage img2img and inpaint pipelines make it of a picture:
    by their own functions, with Krea 2's transformer, VAE and schedule. text_tokens: as in `expected_latents`."""
    pipeline = load_pipeline(folder, dtype)
    theirs = QwenImageImg2ImgPipeline if edit.mask is None else QwenImageInpaintPipeline
    scheduler, channels, cpu = pipeline.scheduler, pipeline.vae.config.z_dim, torch.device("cpu")
    height, width, _ = edit.rgb.shape
    host = SimpleNamespace(
        scheduler=scheduler,
        vae_scale_factor=pipeline.vae_scale_factor,
        latent_channels=channels,
        _pack_latents=theirs._pack_latents,
        _encode_vae_image=lambda image, generator: _encoded(pipeline, image),
    )
    generator = [torch.Generator("cpu").manual_seed(request.seeds[0])]
    velocity_of = velocities(folder, request, dtype, text_tokens=text_tokens)
    with torch.no_grad():
        scheduler.set_timesteps(sigmas=request.levels, mu=shift_of(folder, request), device=cpu)
        timesteps, _ = theirs.get_timesteps(host, request.steps, edit.strength, cpu)
        image = VaeImageProcessor(vae_scale_factor=16).preprocess(Image.fromarray(edit.rgb), height, width)
        prepared = theirs.prepare_latents(host, image, timesteps[:1], 1, channels, height, width, dtype, cpu, generator)
        latents, *of_mask = prepared if edit.mask is not None else (prepared,)
        if edit.mask is not None:
            processor = VaeImageProcessor(
                vae_scale_factor=16, do_normalize=False, do_binarize=True, do_convert_grayscale=True
            )
            mask = processor.preprocess(Image.fromarray(edit.mask), height, width)
            unused = torch.empty(1, channels, 1, height // 8, width // 8)
            mask, _ = theirs.prepare_mask_latents(
                host, mask, unused, 1, channels, 1, height, width, dtype, cpu, generator
            )
        for index, timestep in enumerate(timesteps):
            velocity = velocity_of(latents, timestep / scheduler.config.num_train_timesteps)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            if edit.mask is not None:
                noise, kept = of_mask
                if index < len(timesteps) - 1:
                    kept = scheduler.scale_noise(kept, timesteps[index + 1 : index + 2], noise)
                latents = (1 - mask) * kept + mask * latents
        return Picture(latents[0].float(), decoded(folder, latents, width, height, dtype))


def velocities(
    folder: Path, request: Request, dtype: torch.dtype = torch.float32, *, text_tokens: int = 512
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What diffusers' transformer makes of packed latents, (1, image_tokens, in_channels), at a noise level: the
    velocity, guided as the request says."""
    pipeline, cpu = load_pipeline(folder, dtype), torch.device("cpu")
    prompts = [request.prompt, *([request.negative_prompt] if request.guidance > 0 else [])]
    with torch.no_grad():
        encoded = [pipeline.encode_prompt(text, cpu, 1, max_sequence_length=text_tokens) for text in prompts]
    rows, columns = request.height // 16, request.width // 16

    def velocity_of(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        predicted = [
            pipeline.transformer(
                hidden_states=latents,
                encoder_hidden_states=text,
                timestep=sigma.expand(1).to(latents.dtype),
                position_ids=pipeline.prepare_position_ids(text.shape[1], rows, columns, cpu),
                encoder_attention_mask=mask,
                return_dict=False,
            )[0]
            for text, mask in encoded
        ]
        if len(predicted) == 1:
            return predicted[0]
        return predicted[0] + request.guidance * (predicted[0] - predicted[1])

    return velocity_of


def shift_of(folder: Path, request: Request) -> float:
    """The schedule's shift as `Krea2Pipeline` chooses it, unless the request does."""
    pipeline = load_pipeline(folder)
    if request.mu is not None or pipeline.config.is_distilled:
        return request.mu if request.mu is not None else 1.15
    config = pipeline.scheduler.config
    ends = config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    return calculate_shift(request.height // 16 * (request.width // 16), *ends)


def encoded(folder: Path, rgb: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What diffusers' VAE makes of uint8 (height, width, 3): normalised latents (z_dim, height / 8, width / 8)."""
    image = VaeImageProcessor(vae_scale_factor=16).preprocess(Image.fromarray(rgb))
    with torch.no_grad():
        return _encoded(load_pipeline(folder, dtype), image[:, :, None].to(dtype))[0, :, 0]


def decoded(
    folder: Path, tokens: torch.Tensor, width: int, height: int, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """What the VAE makes of packed latents, (1, image_tokens, in_channels), as `Krea2Pipeline` has it: uint8
    (height, width, 3)."""
    pipeline = load_pipeline(folder, dtype)
    latents = pipeline._unpack_latents(tokens, height, width).to(dtype)
    with torch.no_grad():
        mean, std = _statistics(pipeline, latents)
        image = pipeline.vae.decode(latents * std + mean, return_dict=False)[0][:, :, 0]
        (picture,) = pipeline.image_processor.postprocess(image, output_type="pil")
    return np.asarray(picture)


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
            sigmas=None if request.sigmas is None else list(request.sigmas),
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


def _encoded(pipeline: Krea2Pipeline, image: torch.Tensor) -> torch.Tensor:
    """(1, 3, 1, h, w) in [-1, 1] → (1, z_dim, 1, h / 8, w / 8), as `_encode_vae_image` of both pipelines, but the
    latents' mean instead of a sample."""
    latents = retrieve_latents(pipeline.vae.encode(image), sample_mode="argmax")
    mean, std = _statistics(pipeline, latents)
    return (latents - mean) / std


def _statistics(pipeline: Krea2Pipeline, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    config = pipeline.vae.config
    mean, std = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (config.latents_mean, config.latents_std))
    return mean.to(latents.dtype), std.to(latents.dtype)


@lru_cache(maxsize=8)
def _load_pipeline(folder: Path, dtype: torch.dtype) -> Krea2Pipeline:
    pipeline = Krea2Pipeline.from_pretrained(folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
