"""What of a model stays on a small device and what lies in host memory, by arithmetic. Pure.

Parts in host memory cost copies: the fewer bytes a plan copies for an image, the cheaper it is. `plan_memory` looks at
all plans, some hundreds, and takes the cheapest that fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from engine.checkpoint.weight_format import Weights, parameter_formats
from engine.config.chat_template import MAX_PROMPT_TOKENS, SUFFIX_TOKENS
from engine.config.components import VAE_ENCODER
from engine.config.engine_config import DIT, DIT_LAYERWISE, OFFLOADS, TEXT_ENCODER, VAE, EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.model.tiles import SMALLEST_TILE
from engine.planning.step_memory import (
    batch_bytes,
    cache_bytes,
    communication_bytes,
    decode_bytes,
    encode_bytes,
    picture_encode_bytes,
    tiled_decode_bytes,
)
from engine.planning.weight_bytes import WeightBytes
from engine.step_cache.settings import PRESETS

# 1 / _UNCOUNTED_PART of a budget is left to what is not counted, 1 GB of 16: half of it to what torch allocates (its
# rounding, the libraries' workspaces, CUDA graphs, kept text features and schedules, norms and tables as LoRAs make
# them), half to the device's context and the libraries' code.
_UNCOUNTED_PART = 16
_TILES = (128, 96, 64, SMALLEST_TILE)  # sides to choose from, in latent pixels


@dataclass(frozen=True)
class MemoryPlan:
    """What a rank keeps where. All sizes are bytes.

    sizes: of the rank's weights. offload: as in `EngineConfig`. streamed: the DiT's blocks that are copied to the
    device in every step. prefetch: how many blocks are copied ahead. decode_limit: an image whose decoding would take
    more is decoded in tiles, None for never; tiled: whether one of the default size is. work: what an image of the
    default size takes beside the weights, or encoding a picture of it, while another is decoded. loras: left to LoRAs.
    communication: taken by NCCL, outside of torch. budget: what the plan may take of the device, None for all of it.
    """

    sizes: WeightBytes
    offload: tuple[str, ...]
    streamed: tuple[int, ...]
    prefetch: int
    decode_limit: int | None
    tiled: bool
    work: int
    loras: int
    communication: int
    budget: int | None = None

    @property
    def weights(self) -> int:
        """The most that weights take on the device at a time."""
        size, text = self.sizes.total, self.sizes.text_layers
        if self.streamed:
            size += slot_bytes(self._streamed_sizes, self.prefetch) - sum(self._streamed_sizes)
        if TEXT_ENCODER in self.offload:
            size += slot_bytes(text, self.prefetch) - sum(text) - self.sizes.text_rest
        return size

    @property
    def host(self) -> int:
        """What weights take in host memory."""
        sizes, size = self.sizes, sum(self._streamed_sizes)
        if TEXT_ENCODER in self.offload:
            size += sum(sizes.text_layers) + sizes.text_rest
        if DIT in self.offload:
            size += sum(sizes.dit_blocks) + sizes.dit_rest
        return size + sizes.both_vae_halves * (VAE in self.offload)

    @property
    def copied_per_step(self) -> int:
        """What a denoise step copies from host memory."""
        return sum(self._streamed_sizes)

    @property
    def copied_per_prompt(self) -> int:
        """What encoding a new prompt copies from host memory."""
        return sum(self.sizes.text_layers) if TEXT_ENCODER in self.offload else 0

    @property
    def _streamed_sizes(self) -> list[int]:
        return [self.sizes.dit_blocks[block] for block in self.streamed]

    @property
    def needed(self) -> int:
        """The smallest budget that this plan keeps within."""
        counted = self.weights + self.work + self.loras
        return -(-counted * _UNCOUNTED_PART // (_UNCOUNTED_PART - 1)) + self.communication

    @property
    def usable(self) -> int | None:
        """What weights, LoRAs and work may take of the budget."""
        return self._without(_UNCOUNTED_PART)

    @property
    def allocatable(self) -> int | None:
        """What torch may allocate of the budget: `usable`, and its half of what is not counted."""
        return self._without(2 * _UNCOUNTED_PART)

    def _without(self, part: int) -> int | None:
        """The budget, less what NCCL takes and 1 / `part` of the rest."""
        if self.budget is None:
            return None
        own = self.budget - self.communication
        return own - own // part

    def describe(self) -> list[str]:
        """Tell the plan in lines for people."""
        blocks, streamed = len(self.sizes.dit_blocks), len(self.streamed)
        copied = f"{shown(self.copied_per_step)} are copied each step, {self.prefetch} ahead"
        which = "from less than the default size on" if self.tiled else "above the default size"
        lines = (
            ("budget", self.budget is not None and f"{shown(self.budget)} a rank"),
            ("weights", f"{shown(self.weights)} on the device, {shown(self.host)} in host memory"),
            ("work", f"{shown(self.work)} for an image of the default size"),
            ("NCCL", self.communication and f"{shown(self.communication)} for its buffers, by others' measurements"),
            ("offloaded", ", ".join(self.offload) or "nothing"),
            ("blocks", streamed and f"{blocks - streamed} of {blocks} stay on the device; {copied}"),
            ("LoRAs", self.loras and f"{shown(self.loras)} are left to them"),
            ("new prompts", self.copied_per_prompt and f"{shown(self.copied_per_prompt)} are copied for each"),
            ("decoding", self.decode_limit is not None and f"in at most {shown(self.decode_limit)}: tiles {which}"),
        )
        return [f"{name:<16}{text}" for name, text in lines if text]


def plan_checkpoint(
    weights: Weights,
    engine: EngineConfig,
    bytes_per_element: int,
    *,
    budget: int | None,
    fp8_products: bool = False,
    whole_text_encoder: bool = False,
    size: tuple[int, int] | None = None,
    decoding_bytes_per_element: int | None = None,
    nccl: bool = False,
) -> MemoryPlan:
    """Plan for each rank as `plan_memory` does, with the same errors. fp8_products: the device multiplies fp8 matrices
    as they are. whole_text_encoder: its matrices are not split. size: width and height of the images to plan for, in
    pixels, None for the default size."""
    model = weights.config
    if size is not None:
        model = replace(model, default_width=size[0], default_height=size[1])
    formats = parameter_formats(
        weights, engine.tp, bytes_per_element, engine.quantization, whole_text_encoder=whole_text_encoder
    )
    if not engine.image_input:
        formats.pop(VAE_ENCODER, None)
    fp8_products = fp8_products or engine.quantization == "fp8"
    return plan_memory(
        model,
        WeightBytes.of(formats, bytes_per_element, fp8_products=fp8_products),
        engine,
        bytes_per_element,
        budget=budget,
        decoding_bytes_per_element=decoding_bytes_per_element,
        nccl=nccl,
    )


def plan_memory(
    model: ModelConfig,
    sizes: WeightBytes,
    engine: EngineConfig,
    bytes_per_element: int,
    *,
    budget: int | None = None,
    decoding_bytes_per_element: int | None = None,
    nccl: bool = False,
) -> MemoryPlan:
    """Choose the cheapest plan whose weights and work fit into `budget` bytes on each rank.

    engine: its degrees, what it offloads in any case, its `prefetch` and `vae_memory` (None: what fits), and its
    `lora_memory` (None: 0). Without a budget nothing else is offloaded, and `dit-layerwise` streams all blocks.
    decoding_bytes_per_element: as in `DecodeMemory`, None for as many as the model's. nccl: several ranks communicate
    over it. Raises `ArgumentError` with the least budget that would do.
    """
    default = model.default_width, model.default_height
    decoding_bytes_per_element = decoding_bytes_per_element or bytes_per_element
    decoded = model, *default, decoding_bytes_per_element
    limits = [engine.vae_memory]
    if budget is not None and engine.vae_memory is None:  # enough for the default size at once, or in tiles
        sides = [side for side in _TILES if side * model.vae.scale_factor < max(default)]
        limits = [decode_bytes(*decoded), *(tiled_decode_bytes(*decoded, side) for side in sides)]
    decoding = {limit: decode_bytes(*decoded, limit) for limit in (None, *limits)}
    pictures = {limit: picture_encode_bytes(*decoded, limit) if engine.image_input else 0 for limit in limits}
    image_tokens = model.image_tokens(*default)
    halves = [image_tokens + MAX_PROMPT_TOKENS + SUFFIX_TOKENS] * (2 if model.default_guidance else 1)
    caching = max(
        cache_bytes(model, preset, halves, image_tokens, engine.degrees, bytes_per_element)
        for preset in PRESETS.values()
        if preset.method == "velocity"  # the state of blocks is no small part, which only some requests need
    )
    stepping = max(
        batch_bytes(model, halves, engine.degrees, bytes_per_element) + caching,
        encode_bytes(model, engine.tp, bytes_per_element),
    )
    communication = communication_bytes(engine.degrees) if nccl else 0
    blocks = len(sizes.dit_blocks)

    def make(offload: Sequence[str], streamed: int, prefetch: int, limit: int | None) -> MemoryPlan:
        names = {*offload, DIT_LAYERWISE} if streamed else offload
        return MemoryPlan(
            sizes=sizes,
            offload=tuple(name for name in OFFLOADS if name in names),
            streamed=spread(streamed, blocks),
            prefetch=prefetch,
            decode_limit=limit,
            tiled=decoding[limit] < decoding[None],
            work=sizes.dequantized + max(stepping, pictures[limit]) + decoding[limit],
            loras=engine.lora_memory or 0,
            communication=communication,
        )

    def cost(plan: MemoryPlan) -> tuple[float, ...]:
        """Whether copies are waited for, then what is copied for an image, then how small tiles are."""
        copied = plan.copied_per_step * model.default_steps + plan.copied_per_prompt
        return plan.prefetch == 0 and copied > 0, copied, -(plan.decode_limit or 0), -plan.prefetch

    layerwise = DIT_LAYERWISE in engine.offload
    if budget is None:
        prefetch = 1 if engine.prefetch is None else engine.prefetch
        return make(engine.offload, blocks if layerwise else 0, prefetch, engine.vae_memory)
    choices = product(
        (engine.offload, (*engine.offload, TEXT_ENCODER)),
        range(1 if layerwise else 0, 1 if DIT in engine.offload else blocks + 1),
        (1, 0) if engine.prefetch is None else (engine.prefetch,),
        limits,
    )
    plans = sorted((make(*choice) for choice in choices), key=cost)
    for plan in plans:
        if plan.needed <= budget:
            return replace(plan, budget=budget)
    least = min(plans, key=lambda plan: plan.needed)
    nccl_part = f", NCCL {shown(least.communication)}" if least.communication else ""
    raise ArgumentError(
        f"memory_budget must be at least {shown(least.needed)} a rank for this checkpoint (weights "
        f"{shown(least.weights)}, work {shown(least.work)}{nccl_part}), got {shown(budget)}",
        parameter="memory_budget",
    )


def spread(count: int, blocks: int) -> tuple[int, ...]:
    """Choose `count` of the blocks, by index, evenly spaced: each is copied while those before it compute."""
    return tuple(block for block in range(blocks) if (block + 1) * count // blocks > block * count // blocks)


def slot_bytes(blocks: Sequence[int], prefetch: int) -> int:
    """Add up the slots on the device that blocks of these sizes take turns in: one in use, `prefetch` being copied."""
    return min(prefetch + 1, len(blocks)) * max(blocks)


def shown(size: int) -> str:
    """Write a number of bytes for people; never less than it is, so that a budget of what is shown is enough."""
    unit, name = (10**9, "GB") if size >= 10**9 else (10**6, "MB")
    return f"{math.ceil(size * 100 / unit) / 100:.2f} {name}"
