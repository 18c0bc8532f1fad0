"""Compares variants on the demo checkpoint: final latents and images, from prompt to pixels."""

from __future__ import annotations

import argparse
import math
import queue
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec

import torch

from bench.engines.denoising import final_latents
from bench.fidelity.files import FILES, demo_file
from bench.fidelity.plain import plain_kernels
from bench.fidelity.tries import Tries
from bench.fidelity.variants import REFERENCE, Variant, available_variants, print_reasons, quantize, round_timesteps
from bench.kernels.checks import relative_error
from bench.measure.output import print_table, publish, publish_left_out
from bench.measure.timing import Budget
from engine.config.chat_template import PREFIX, SUFFIX
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.parallel.mesh import Mesh
from engine.rank.image_decoder import DecodedImage
from engine.rank.rank import Rank
from engine.step import Job

PROMPTS = (
    "a red circle on a blue background",
    "a small yellow star at the left on a black background",
    "a green heart above a white ring on a purple background",
    "a large orange diamond on a gray background",
)


@dataclass(frozen=True)
class DemoErrors:
    """Against the reference, over all images: of final latents, and dB of the images (None: no pixel differs)."""

    variant: str
    images: int
    latents_error: float
    largest_latents_error: float
    psnr_db: float | None
    smallest_psnr_db: float | None


def compare_demo(options: argparse.Namespace, device: torch.device, budget: Budget, tries: Tries) -> list[str]:
    """Returns what there was no time for. Raises `DeviceLost`."""
    model = ModelConfig.from_folder(DEMO_CHECKPOINT)
    variants, reasons = available_variants(device, model.transformer.head_dim)
    variants.append(Variant("bfloat16 timesteps alone", "float32", plain=REFERENCE.plain, rounds_timesteps=True))
    if find_spec("gguf") is None:
        reasons["files"] = "the package gguf is not there"
    else:
        variants += [Variant(f"file: {name}", file=file) for name, file in FILES.items()]
    try:
        jobs = demo_jobs(model, options.images)
    except ImportError as error:
        print_reasons({"demo checkpoint": str(error)})
        return []
    exact = make_images(REFERENCE, jobs, device)
    results, left_out = [], []
    for variant in variants:
        if budget.spent:
            left_out.append(f"demo: {variant.name}")
            continue
        what = f"demo, {variant.name}"
        with tries.telling(what):
            if tries.begin(what):
                results.append(compare_images(variant.name, make_images(variant, jobs, device), exact))
                publish("fidelity_demo", asdict(results[-1]), options.json)
    print_demo(results)
    print_reasons(reasons)
    publish_left_out(left_out, len(variants), options.json)
    return left_out


def demo_jobs(model: ModelConfig, images: int) -> list[Job]:
    """Raises `ImportError` without tokenizers, which transformers brings along."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DEMO_CHECKPOINT / "tokenizer" / "tokenizer.json"))

    def ids(prompt: str) -> tuple[int, ...]:
        return (*tokenizer.encode(PREFIX + prompt).ids, *tokenizer.encode(SUFFIX).ids)

    return [
        Job(
            job_id=image,
            prompt_ids=ids(PROMPTS[image % len(PROMPTS)]),
            negative_ids=None,
            width=model.default_width,
            height=model.default_height,
            steps=model.default_steps,
            guidance=0.0,
            mu=None,
            seed=image,
        )
        for image in range(images)
    ]


def make_images(variant: Variant, jobs: Sequence[Job], device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Final latents and pixels of each job."""
    images: queue.SimpleQueue[DecodedImage] = queue.SimpleQueue()
    config = EngineConfig(device=device.type, dtype=variant.dtype, attention=variant.attention, cuda_graphs=False)
    with plain_kernels(variant.plain), demo_file(variant.file) as transformer:
        config = replace(config, model="demo", transformer=transformer)
        rank = Rank(config, Mesh(), device, images.put)
        for matrix in variant.fp8:
            quantize(rank.model.transformer, matrix)
        if variant.rounds_timesteps:
            round_timesteps(rank.model.transformer)
        latents = final_latents(rank, jobs, decode=True)
        rank.close()
    decoded = {image.job_id: image for image in (images.get() for _ in jobs)}
    pixels = [torch.frombuffer(bytearray(decoded[job.job_id].rgb), dtype=torch.uint8) for job in jobs]
    return list(zip(latents, pixels, strict=True))


def compare_images(
    name: str,
    ours: Sequence[tuple[torch.Tensor, torch.Tensor]],
    exact: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> DemoErrors:
    errors = [relative_error(a, b) for (a, _), (b, _) in zip(ours, exact, strict=True)]
    squares = [(a.double() - b.double()).square().mean().item() for (_, a), (_, b) in zip(ours, exact, strict=True)]
    return DemoErrors(
        name, len(errors), statistics.mean(errors), max(errors), _psnr(statistics.mean(squares)), _psnr(max(squares))
    )


def _psnr(mean_square: float) -> float | None:
    return 10 * math.log10(255**2 / mean_square) if mean_square else None


def print_demo(results: Sequence[DemoErrors]) -> None:
    def decibels(value: float | None) -> str:
        return "equal" if value is None else f"{value:.1f}"

    print_table(
        ("demo checkpoint", "images", "latents", "worst", "PSNR dB", "worst"),
        [
            (
                one.variant,
                str(one.images),
                f"{one.latents_error:.2e}",
                f"{one.largest_latents_error:.2e}",
                decibels(one.psnr_db),
                decibels(one.smallest_psnr_db),
            )
            for one in results
        ],
    )
