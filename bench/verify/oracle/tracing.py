"""One image of diffusers', its stages recorded: the text encoder's, a step's and the decoder's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from bench.verify.oracle.pipeline import Encoded, make
from bench.verify.oracle.recording import Answers, Call, in_float32, keep_stages, on_host, recorded
from bench.verify.subject import stages
from bench.verify.subject.models import Model
from engine.config.chat_template import PREFIX_TOKENS


def trace_text(
    pipeline: Any, model: Model, answers: Answers, prompt: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode the traced prompt: its states and mask, and every layer's stage."""
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


def make_traced(pipeline: Any, answers: Answers, encoded: Encoded, noise: torch.Tensor) -> None:
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
        made, images = make(pipeline, answers.requests[answers.traced], encoded, noise, output_type="pil")
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


def trace_step(
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
