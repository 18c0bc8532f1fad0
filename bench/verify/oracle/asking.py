"""What diffusers' `Krea2Pipeline` makes of the requests: latents after every step, a picture, and one trace of stages.

The text encoder is loaded first and let go of before the transformer is, so that at the real size the two are never in
memory together. Needs diffusers and transformers.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
import transformers
from diffusers import Krea2Pipeline

from bench.verify import stages
from bench.verify.models import Model, Request, traced_request
from bench.verify.oracle.loading import check_finite, check_latents, load_parts
from bench.verify.oracle.recording import Answers, Call, Made, in_float32, keep_stages, on_host, recorded
from engine.config.chat_template import PREFIX_TOKENS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHTS = ("text_encoder", "transformer", "vae")  # the parts that have any
Say = Callable[[str], None]
T = TypeVar("T")
Encoded = dict[str, tuple[torch.Tensor, torch.Tensor]]  # states and mask by prompt, as `encode_prompt` gives them

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


def ask(
    model: Model,
    requests: Sequence[Request],
    dtype: str,
    device: torch.device,
    say: Say,
    *,
    noise_dtype: str | None = None,
    reference: Answers | None = None,
) -> Answers:
    """Make all images and record the traced one's stages.

    noise_dtype: in which noise is drawn, `dtype` unless it is given. reference: the same in float32, whose latents the
    velocity is computed from, so that both can be compared; rounded to bfloat16, as both then see them. Raises
    `CannotJudge` if what diffusers has loaded, or makes of it, is nothing to compare with.
    """
    traced = list(requests).index(traced_request(requests))
    answers = Answers(dtype, requests, traced, at=requests[traced].steps // 2)
    encoded = _encode(model, answers, device, say)
    with _pipeline(model, dtype, device, ("text_encoder", "tokenizer"), say) as pipeline:
        for index, request in enumerate(requests):
            say(f"diffusers in {dtype}: image {index + 1} of {len(requests)}, {request.name}")
            noise = _draw_noise(pipeline, request, DTYPES[noise_dtype or dtype])
            if index == traced:
                answers.attempt("decoder", partial(_make_traced, pipeline, answers, encoded, noise))
            if len(answers.made) == index:
                answers.made.append(_make(pipeline, request, encoded, noise, output_type="latent")[0])
            check_latents(request.name, dtype, answers.made[index].latents[-1])
        before = reference.before if reference is not None else None
        answers.attempt(
            "transformer", partial(_trace_step, pipeline, answers, encoded, DTYPES[noise_dtype or dtype], before)
        )
    return answers


@contextmanager
def _pipeline(model: Model, dtype: str, device: torch.device, without: Sequence[str], say: Say) -> Iterator[Any]:
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


# ---- the text encoder


def _encode(model: Model, answers: Answers, device: torch.device, say: Say) -> Encoded:
    """All prompts, and the stages of the traced one."""
    guided = [request for request in answers.requests if request.guidance > 0]
    prompts = dict.fromkeys(
        [request.prompt for request in answers.requests] + [request.negative_prompt for request in guided]
    )
    encoded: Encoded = {}
    with _pipeline(model, answers.dtype, device, ("transformer", "vae"), say) as pipeline:
        for prompt in prompts:
            states = None
            if prompt == answers.requests[answers.traced].prompt:
                trace = partial(_trace_text, pipeline, model, answers, prompt, device)
                states = answers.attempt("text encoder", trace)
            encoded[prompt] = pipeline.encode_prompt(prompt, device) if states is None else states
    return encoded


def _trace_text(
    pipeline: Any, model: Model, answers: Answers, prompt: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    trace, encoder = answers.trace, pipeline.text_encoder
    encoder = encoder.language_model if hasattr(encoder, "language_model") else encoder.model.language_model
    modules = {stages.EMBEDDING: encoder.embed_tokens, stages.NORM: encoder.norm, "rotations": encoder.rotary_emb}
    modules |= {stages.LAYER.format(index): encoder.layers[index] for index in range(model.config.text_layers)}
    with recorded(modules) as calls:
        states, mask = pipeline.encode_prompt(prompt, device)
    rows = torch.cat([mask.new_ones(PREFIX_TOKENS), mask[0]])
    embedding = calls[stages.EMBEDDING]
    trace.ids = tuple(embedding.input[0][rows].tolist())
    trace.add(stages.EMBEDDING, None, embedding.result[0][rows])
    low = answers.low
    rotations = _rotations(calls["rotations"]) if low else None
    for index in range(model.config.text_layers):
        call = calls[stages.LAYER.format(index)]
        exactly = (lambda call=call: in_float32(call, position_embeddings=rotations)[0][rows]) if low else None
        trace.add(stages.LAYER.format(index), call.input[0][rows], call.result[0][rows], exactly)
    if max(model.config.text_encoder_taps) == model.config.text_encoder.num_layers:
        call = calls[stages.NORM]
        trace.add(
            stages.NORM,
            call.input[0][rows],
            call.result[0][rows],
            (lambda: in_float32(call)[0][rows]) if low else None,
        )
    for place, tap in enumerate(model.config.text_encoder_taps):
        trace.add(stages.TAP.format(tap), None, states[0][mask[0]][:, place])
    return states, mask


def _rotations(call: Call) -> Any:
    """RoPE's tables unrounded: transformers rounds them to the model's dtype, the engine does not."""
    hidden, *others = call.arguments
    return call.module(hidden.float(), *others, **call.options)


# ---- the transformer and the VAE


def _draw_noise(pipeline: Any, request: Request, dtype: torch.dtype) -> torch.Tensor:
    """As the pipeline draws it: (1, image tokens, in_channels)."""
    channels = pipeline.transformer.config.in_channels // pipeline.patch_size**2
    generator = torch.Generator("cpu").manual_seed(request.seed)
    size = request.height, request.width
    return pipeline.prepare_latents(1, channels, *size, dtype, torch.device("cpu"), generator)


def _make(
    pipeline: Any, request: Request, encoded: Encoded, noise: torch.Tensor, *, output_type: str
) -> tuple[Made, Any]:
    """The image's latents, and whatever the pipeline gives."""
    latents: list[torch.Tensor] = []
    velocities: list[torch.Tensor] = []

    def look(_pipeline: Any, _step: int, _time: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
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


def _make_traced(pipeline: Any, answers: Answers, encoded: Encoded, noise: torch.Tensor) -> None:
    """The traced image, with its decoding."""
    vae, trace = pipeline.vae, answers.trace
    decoder = vae.decoder
    modules = {
        stages.POST_QUANT: vae.post_quant_conv,
        stages.CONV_IN: decoder.conv_in,
        stages.MIDDLE: decoder.mid_block,
        **{stages.UP.format(index): block for index, block in enumerate(decoder.up_blocks)},
        "norm_out": decoder.norm_out,
        stages.HEAD: decoder.conv_out,
    }
    with recorded(modules) as calls:
        made, images = _make(pipeline, answers.requests[answers.traced], encoded, noise, output_type="pil")
    answers.made.append(made)
    answers.picture = np.asarray(images[0])
    low = answers.low
    for name, call in calls.items():
        if name in ("norm_out", stages.HEAD):
            continue
        exactly = (lambda call=call: in_float32(call, only_first=True)[:, :, 0]) if low else None
        trace.add(name, call.input[:, :, 0], call.result[:, :, 0], exactly)
    norm, head = calls["norm_out"], calls[stages.HEAD]

    def exact_head() -> torch.Tensor:
        normed = torch.nn.functional.silu(in_float32(norm, only_first=True))
        return copy.deepcopy(head.module).float()(normed)[:, :, 0]

    trace.add(stages.HEAD, norm.input[:, :, 0], head.result[:, :, 0], exact_head if low else None)
    trace.inputs[stages.SCALED] = made.latents[-1]
    trace.expected[stages.SCALED] = trace.inputs[stages.POST_QUANT]
    if low:
        scaled = _scale(pipeline, answers, made.latents[-1])
        trace.exact[stages.SCALED] = on_host(scaled[:, :, 0])
        pixels = copy.deepcopy(vae).float().decode(scaled, return_dict=False)[0][0, :, 0]
        answers.exact_picture = np.asarray(on_host(pixels.permute(1, 2, 0) / 2 + 0.5) * 255)


def _scale(pipeline: Any, answers: Answers, tokens: torch.Tensor) -> torch.Tensor:
    """Final latents times their std plus their mean, in float32: (1, z_dim, 1, h, w)."""
    request, config = answers.requests[answers.traced], pipeline.vae.config
    device = pipeline.vae.device
    latents = pipeline._unpack_latents(tokens[None].to(device), request.height, request.width)
    mean, std = (
        torch.tensor(values, device=device).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std)
    )
    return latents * std + mean


def _trace_step(
    pipeline: Any, answers: Answers, encoded: Encoded, noise_dtype: torch.dtype, before: torch.Tensor | None
) -> None:
    """The stages of one forward of the transformer, from latents in the middle of the schedule, and its velocity.
    before: these latents, where others than the image's own are to be compared."""
    transformer, request = pipeline.transformer, answers.requests[answers.traced]
    made, trace = answers.made[answers.traced], answers.trace
    if before is None:
        before = made.latents[answers.at - 1] if answers.at else made.noise
    answers.before = before.to(noise_dtype).float()
    device, dtype = transformer.device, transformer.dtype
    multiple = pipeline.vae_scale_factor * pipeline.patch_size
    scale = pipeline.scheduler.config.num_train_timesteps
    timestep = (made.sigmas[answers.at] * scale / scale).to(device, dtype)[None]
    latents = answers.before[None].to(device, dtype)

    def forward(prompt: str) -> torch.Tensor:
        states, mask = encoded[prompt]
        positions = pipeline.prepare_position_ids(
            mask.shape[1], request.height // multiple, request.width // multiple, device
        )
        options = {"position_ids": positions, "encoder_attention_mask": mask, "return_dict": False}
        return transformer(latents, states, timestep, **options)[0][0]

    fusion = transformer.text_fusion
    modules = {
        **{stages.LAYERWISE.format(index): block for index, block in enumerate(fusion.layerwise_blocks)},
        stages.PROJECTOR: fusion.projector,
        **{stages.REFINER.format(index): block for index, block in enumerate(fusion.refiner_blocks)},
        stages.TEXT_IN: transformer.txt_in,
        stages.TIME: transformer.time_embed,
        stages.MODULATION: transformer.time_mod_proj,
        stages.IMAGE_IN: transformer.img_in,
        **{stages.BLOCK.format(index): block for index, block in enumerate(transformer.transformer_blocks)},
        stages.FINAL: transformer.final_layer,
    }
    with recorded(modules) as calls:
        velocity = forward(request.prompt)
    if request.guidance > 0:
        velocity = velocity + request.guidance * (velocity - forward(request.negative_prompt))
    answers.velocity = on_host(velocity)
    keep_stages(calls, trace, encoded[request.prompt][1][0], timestep, low=answers.low)
