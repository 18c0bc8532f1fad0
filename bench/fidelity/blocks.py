"""Compares variants on random blocks of a model's shape: the velocity at several sigmas."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from bench.engines.real_size import RandomWeights, model_of_size
from bench.fidelity.plain import plain_kernels
from bench.fidelity.tries import Tries
from bench.fidelity.variants import REFERENCE, Variant, available_variants, print_reasons, quantize
from bench.kernels.checks import relative_error
from bench.measure.output import print_table, publish, publish_left_out
from bench.measure.timing import Budget
from engine.checkpoint.load import LoadOptions, load_weights
from engine.config.model_config import ModelConfig
from engine.kernels.attention.backends import GatedAttentionKernel
from engine.kernels.rope import image_rotations
from engine.model.batch import Layout, Segment
from engine.model.transformer import TimeModulation, Transformer
from engine.parallel.group import LocalGroup

SIGMAS = (1.0, 0.75, 0.5, 0.25)
TEXT_TOKENS = 64
BLOCKS = {"real": (3, 512), "tiny": (3, 256)}  # layers, and the image's side


@dataclass(frozen=True)
class BlockErrors:
    """Against the reference: relative error of the velocity by sigma."""

    variant: str
    size: str
    layers: int
    tokens: int
    velocity_error: float
    by_sigma: dict[str, float]


def compare_blocks(options: argparse.Namespace, device: torch.device, budget: Budget, tries: Tries) -> list[str]:
    """Returns what there was no time for. Raises `DeviceLost`."""
    layers, side = BLOCKS[options.size]
    side = options.side or side
    model = model_of_size(options.size, options.layers or layers)
    variants, reasons = available_variants(device, model.transformer.head_dim)
    exact = velocities(REFERENCE, model, side, device)
    results, left_out = [], []
    for variant in variants:
        if budget.spent:
            left_out.append(f"blocks: {variant.name}")
            continue
        what = f"blocks, {variant.name}"
        with tries.telling(what):
            if tries.begin(what):
                ours = velocities(variant, model, side, device)
                results.append(_block_errors(variant.name, options.size, model, side, ours, exact))
                publish("fidelity_blocks", asdict(results[-1]), options.json)
    print_blocks(results, model)
    print_reasons(reasons)
    publish_left_out(left_out, len(variants), options.json)
    return left_out


def velocities(variant: Variant, model: ModelConfig, side: int, device: torch.device) -> list[torch.Tensor]:
    """Of one random image at each of `SIGMAS`, on the host. The same weights and inputs for every variant."""
    dit = model.transformer
    dtype = torch.float32 if variant.dtype == "float32" else torch.bfloat16
    with torch.device("meta"):
        transformer = Transformer(dit, LocalGroup(), GatedAttentionKernel(variant.attention), GatedAttentionKernel())
    weights = RandomWeights(model, device)
    load_weights(transformer, weights, "transformer", rank=0, size=1, options=LoadOptions(device, dtype))
    for matrix in variant.fp8:
        quantize(transformer, matrix)

    generator = torch.Generator(device).manual_seed(0)
    grid = side // model.size_multiple
    segment = Segment(0, TEXT_TOKENS, grid, grid)
    layout = Layout([segment], [image_rotations(grid, grid, dit.axes_dims_rope, dit.rope_theta).to(device)])
    text = torch.randn((TEXT_TOKENS, dit.hidden_size), generator=generator, device=device).to(dtype)
    result = []
    with torch.inference_mode(), plain_kernels(variant.plain):
        modulation = transformer.encode_timesteps(torch.tensor(SIGMAS, device=device))
        for step in range(len(SIGMAS)):
            latents = torch.randn((segment.image_tokens, dit.in_channels), generator=generator, device=device)
            now = TimeModulation(modulation.block[step, None], modulation.final[step, None])
            result.append(transformer([text], [latents], now, layout).cpu())
    return result


def _block_errors(
    name: str,
    size: str,
    model: ModelConfig,
    side: int,
    ours: Sequence[torch.Tensor],
    exact: Sequence[torch.Tensor],
) -> BlockErrors:
    errors = [relative_error(a, b) for a, b in zip(ours, exact, strict=True)]
    by_sigma = dict(zip(map(str, SIGMAS), errors, strict=True))
    tokens = TEXT_TOKENS + model.image_tokens(side, side)
    return BlockErrors(name, size, model.transformer.num_layers, tokens, statistics.mean(errors), by_sigma)


def print_blocks(results: Sequence[BlockErrors], model: ModelConfig) -> None:
    if not results:
        return
    dit = model.transformer
    print(
        f"\n{dit.num_layers} random blocks of width {dit.hidden_size} with {dit.num_heads}/{dit.num_kv_heads} heads, "
        f"{results[0].tokens} tokens: relative error of the velocity"
    )
    print_table(
        ("blocks", "mean", *(f"σ = {sigma}" for sigma in SIGMAS)),
        [
            (one.variant, f"{one.velocity_error:.2e}", *(f"{error:.2e}" for error in one.by_sigma.values()))
            for one in results
        ],
    )
