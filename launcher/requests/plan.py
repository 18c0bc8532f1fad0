"""Makes the jobs of a checked request, one for each image, its prompts tokenised. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from engine.config.chat_template import MAX_PROMPT_TOKENS, PREFIX_TOKENS, SUFFIX_TOKENS
from engine.config.model_config import ModelConfig
from engine.step import Job, Picture
from launcher.requests.check import CheckedRequest
from launcher.requests.tokenizer import Prompt


@dataclass(frozen=True)
class Plan:
    """The jobs of a request, one an image, and the text and image tokens of each segment that one adds to a step.

    text_tokens: of its prompts together, as they were written: without the template. blocks: of the transformer.
    """

    jobs: tuple[Job, ...]
    segments: tuple[int, ...]
    warnings: tuple[str, ...]
    text_tokens: int = 0
    image_tokens: int = 0  # of each image
    blocks: int = 0


def make_plan(
    checked: CheckedRequest,
    model: ModelConfig,
    encode: Callable[[str], Prompt],
    job_ids: Iterator[int],
    lora_ids: Mapping[str, int],
) -> Plan:
    """Tokenise the prompts and make the jobs, which share the picture that they begin from. Warns of prompts that were
    cut.

    lora_ids: of the adapters that are loaded, by name. One of strength 0 changes nothing, so it is left out.
    """
    texts = {"prompt": encode(checked.prompt)}
    if checked.negative_prompt is not None:
        texts["negative_prompt"] = encode(checked.negative_prompt)
    negative = texts.get("negative_prompt")
    ids = [next(job_ids) for _ in range(checked.num_images)]
    picture = None
    if checked.picture is not None:
        pixels = checked.picture.pixels
        picture = Picture(ids[0], pixels.width, pixels.height, masked=pixels.mask is not None)
    jobs = tuple(
        Job(
            job_id=job_id,
            prompt_ids=texts["prompt"].ids,
            negative_ids=None if negative is None else negative.ids,
            width=checked.width,
            height=checked.height,
            steps=checked.steps,
            guidance=checked.guidance,
            mu=checked.mu,
            seed=checked.seed + index,
            preview_every=checked.preview_every or 0,
            loras=tuple((lora_ids[name], strength) for name, strength in checked.loras if strength),
            explain=checked.explain,
            picture=picture,
            skipped_steps=checked.skipped_steps,
            sigmas=checked.sigmas,
            cache=checked.cache,
            guidance_window=checked.guidance_window,
            guidance_outside=checked.guidance_outside,
        )
        for index, job_id in enumerate(ids)
    )
    image_tokens = model.image_tokens(checked.width, checked.height)
    segments = tuple(len(text.ids) - PREFIX_TOKENS + image_tokens for text in texts.values())
    cut = tuple(f"{name} was cut to {MAX_PROMPT_TOKENS} tokens" for name, text in texts.items() if text.cut)
    text_tokens = sum(len(text.ids) - PREFIX_TOKENS - SUFFIX_TOKENS for text in texts.values())
    return Plan(jobs, segments, checked.warnings + cut, text_tokens, image_tokens, model.transformer.num_layers)
