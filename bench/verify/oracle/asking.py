"""What diffusers' `Krea2Pipeline` makes of the requests: latents after every step, a picture, and one trace of stages.

The text encoder is loaded first and let go of before the transformer is, so that at the real size the two are never in
memory together. Needs diffusers and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from bench.verify.oracle.loading import check_latents
from bench.verify.oracle.pipeline import DTYPES, Encoded, Say, draw_noise, make, open_pipeline
from bench.verify.oracle.recording import Answers
from bench.verify.oracle.tracing import make_traced, trace_step, trace_text
from bench.verify.subject.models import Model, Request, traced_request


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
    with open_pipeline(model, dtype, device, ("text_encoder", "tokenizer"), say) as pipeline:
        for index, request in enumerate(requests):
            say(f"diffusers in {dtype}: image {index + 1} of {len(requests)}, {request.name}")
            noise = draw_noise(pipeline, request, DTYPES[noise_dtype or dtype])
            if index == traced:
                answers.attempt("decoder", partial(make_traced, pipeline, answers, encoded, noise))
            if len(answers.made) == index:
                answers.made.append(make(pipeline, request, encoded, noise, output_type="latent")[0])
            check_latents(request.name, dtype, answers.made[index].latents[-1])
        before = reference.before if reference is not None else None
        answers.attempt(
            "transformer", partial(trace_step, pipeline, answers, encoded, DTYPES[noise_dtype or dtype], before)
        )
    return answers


def _encode(model: Model, answers: Answers, device: torch.device, say: Say) -> Encoded:
    """All prompts, and the stages of the traced one."""
    guided = [request for request in answers.requests if request.guidance > 0]
    prompts = dict.fromkeys(
        [request.prompt for request in answers.requests] + [request.negative_prompt for request in guided]
    )
    encoded: Encoded = {}
    with open_pipeline(model, answers.dtype, device, ("transformer", "vae"), say) as pipeline:
        for prompt in prompts:
            states = None
            if prompt == answers.requests[answers.traced].prompt:
                trace = partial(trace_text, pipeline, model, answers, prompt, device)
                states = answers.attempt("text encoder", trace)
            encoded[prompt] = pipeline.encode_prompt(prompt, device) if states is None else states
    return encoded
