"""What of a model stays on a small device and what lies in host memory, by arithmetic. Pure.

Parts in host memory cost copies: a plan is the cheaper, the fewer bytes it copies for an image. `plan_memory` looks at
every plan there is, which are some hundreds, and takes the cheapest that fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from engine.checkpoint.weight_format import Weights, parameter_formats
from engine.config.chat_template import MAX_PROMPT_TOKENS, SUFFIX_TOKENS
from engine.config.degrees import Degrees
from engine.config.engine_config import DIT, DIT_LAYERWISE, OFFLOADS, TEXT_ENCODER, VAE, EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.model.tiles import SMALLEST_TILE
from engine.planning.step_memory import batch_bytes, communication_bytes, decode_bytes, encode_bytes, tiled_decode_bytes
from engine.planning.weight_bytes import WeightBytes

# Of a budget, the part that is left to what nobody counts. It is 1 GB of 16: half of it for what torch allocates (its
# rounding, the libraries' workspaces, recordings, kept text features and schedules), half for the device's context and
# the libraries' code.
_UNCOUNTED_PART = 16
_TILES = (128, 96, 64, SMALLEST_TILE)  # sides to choose from, in latent pixels


@dataclass(frozen=True)
class MemoryPlan:
    """What a rank keeps where. Bytes.

    offload: as in `EngineConfig`. blocks: of the DiT; streamed: those that are copied in every step. prefetch: blocks
    copied ahead. decode_limit: an image whose decoding would take more is decoded in tiles; None for never. weights:
    the most that weights take on the device at a time. host: the weights in host memory. work: what an image of the
    default size takes besides, while another is decoded; `dequantized` of it for 8-bit matrices. loras: left to LoRAs.
    copied_per_step, copied_per_prompt: from host memory. communication: taken by NCCL, outside of torch.
    """

    offload: tuple[str, ...]
    blocks: int
    streamed: tuple[int, ...]
    prefetch: int
    decode_limit: int | None
    weights: int
    host: int
    work: int
    copied_per_step: int
    copied_per_prompt: int
    tiled: bool
    dequantized: int
    loras: int
    budget: int | None = None
    communication: int = 0

    @property
    def needed(self) -> int:
        """The smallest budget that this plan keeps within."""
        counted = self.weights + self.work + self.loras
        return -(-counted * _UNCOUNTED_PART // (_UNCOUNTED_PART - 1)) + self.communication

    @property
    def usable(self) -> int | None:
        """What weights and work may take of the budget."""
        return self._without(_UNCOUNTED_PART)

    @property
    def allocatable(self) -> int | None:
        """What torch may allocate of the budget, with what nobody counts."""
        return self._without(2 * _UNCOUNTED_PART)

    def _without(self, part: int) -> int | None:
        """The budget but for what NCCL takes and such a part of the rest."""
        if self.budget is None:
            return None
        own = self.budget - self.communication
        return own - own // part

    def describe(self) -> list[str]:
        """Lines for people."""
        offloaded = ", ".join(self.offload) or "nothing"
        lines = [] if self.budget is None else [f"budget          {shown(self.budget)} a rank"]
        lines += [
            f"weights         {shown(self.weights)} on the device, {shown(self.host)} in host memory",
            f"work            {shown(self.work)} for an image of the default size",
            f"offloaded       {offloaded}",
        ]
        if self.communication:
            lines.insert(-1, f"NCCL            {shown(self.communication)} for its buffers, by others' measurements")
        if self.streamed:
            lines.append(
                f"blocks          {self.blocks - len(self.streamed)} of {self.blocks} stay on the device; "
                f"{shown(self.copied_per_step)} are copied each step, {self.prefetch} ahead"
            )
        if self.loras:
            lines.append(f"LoRAs           {shown(self.loras)} are left to them")
        if self.copied_per_prompt:
            lines.append(f"new prompts     {shown(self.copied_per_prompt)} are copied for each")
        if self.decode_limit is not None:
            which = "from less than the default size on" if self.tiled else "above the default size"
            lines.append(f"decoding        in at most {shown(self.decode_limit)}: tiles {which}")
        return lines


def plan_checkpoint(
    weights: Weights,
    engine: EngineConfig,
    tp: int,
    bytes_per_element: int,
    *,
    decoding_bytes_per_element: int | None = None,
    budget: int | None,
    fp8_products: bool = False,
    whole_text_encoder: bool = False,
    nccl: bool = False,
    size: tuple[int, int] | None = None,
) -> MemoryPlan:
    """The plan of each of `tp` ranks, which may take `budget` bytes each. decoding_bytes_per_element: as in
    `DecodeMemory`, None for as many as the model's. fp8_products: the device multiplies fp8 matrices as they are.
    whole_text_encoder: its matrices are not split. nccl: ranks talk over it, where there are several. size: width and
    height of the images to plan for, None for the default size. Raises as `plan_memory` does."""
    model = weights.config
    if size is not None:
        model = replace(model, default_width=size[0], default_height=size[1])
    parameters = parameter_formats(
        weights, tp, bytes_per_element, engine.quantization, whole_text_encoder=whole_text_encoder
    )
    fp8_products = fp8_products or engine.quantization == "fp8"
    return plan_memory(
        model,
        WeightBytes.of(parameters, bytes_per_element, fp8_products=fp8_products),
        degrees=replace(engine.degrees, tp=tp),
        bytes_per_element=bytes_per_element,
        decoding_bytes_per_element=decoding_bytes_per_element,
        budget=budget,
        offload=engine.offload,
        prefetch=engine.prefetch,
        vae_memory=engine.vae_memory,
        lora_memory=engine.lora_memory,
        nccl=nccl,
    )


def plan_memory(
    model: ModelConfig,
    weights: WeightBytes,
    *,
    bytes_per_element: int,
    degrees: Degrees,
    decoding_bytes_per_element: int | None = None,
    budget: int | None = None,
    offload: Sequence[str] = (),
    prefetch: int | None = None,
    vae_memory: int | None = None,
    lora_memory: int | None = None,
    nccl: bool = False,
) -> MemoryPlan:
    """The cheapest plan whose weights and work fit into `budget` bytes on each rank.

    decoding_bytes_per_element: as in `DecodeMemory`, None for as many as the model's. offload: what is offloaded in any
    case; without a budget nothing else is, and no block stays. prefetch, vae_memory, lora_memory: as in `EngineConfig`;
    None for what fits, and for no LoRAs. nccl: ranks talk over it, where there are several. Raises `ArgumentError` with
    the least budget that would do.
    """
    decoding_element = decoding_bytes_per_element or bytes_per_element
    limits = [vae_memory]
    if budget is not None and vae_memory is None:
        limits = list(_decode_limits(model, decoding_element))
    communication = communication_bytes(degrees) if nccl else 0
    planner = _Planner(
        model, weights, degrees, bytes_per_element, decoding_element, limits, lora_memory or 0, communication
    )
    blocks = len(weights.dit_blocks)
    if budget is None:
        streamed = blocks if DIT_LAYERWISE in offload else 0
        return planner.make(offload, streamed, 1 if prefetch is None else prefetch, vae_memory)
    choices = product(
        (tuple(offload), (*offload, TEXT_ENCODER)),
        range(1 if DIT_LAYERWISE in offload else 0, 1 if DIT in offload else blocks + 1),
        (1, 0) if prefetch is None else (prefetch,),
        limits,
    )
    plans = sorted((planner.make(*choice) for choice in choices), key=planner.cost)
    for plan in plans:
        if plan.needed <= budget:
            return replace(plan, budget=budget)
    least = min(plans, key=lambda plan: plan.needed)
    raise ArgumentError(
        f"memory_budget must be at least {shown(least.needed)} a rank for this checkpoint (weights "
        f"{shown(least.weights)}, work {shown(least.work)}"
        f"{f', NCCL {shown(least.communication)}' if least.communication else ''}), got {shown(budget)}",
        parameter="memory_budget",
    )


class _Planner:
    """Adds up what plans take."""

    def __init__(
        self,
        model: ModelConfig,
        weights: WeightBytes,
        degrees: Degrees,
        bytes_per_element: int,
        decoding_element: int,
        limits: Sequence[int | None],
        loras: int,
        communication: int,
    ) -> None:
        size = model.default_width, model.default_height
        self._communication = communication
        self._steps, self._weights, self._loras = model.default_steps, weights, loras
        self._decoding = {limit: decode_bytes(model, *size, decoding_element, limit) for limit in (None, *limits)}
        segments = 2 if model.default_guidance else 1
        longest = model.image_tokens(*size) + MAX_PROMPT_TOKENS + SUFFIX_TOKENS
        self._before_decoding = weights.dequantized + max(
            batch_bytes(model, [longest] * segments, degrees, bytes_per_element),
            encode_bytes(model, degrees.tp, bytes_per_element),
        )

    def make(self, offload: Sequence[str], streamed: int, prefetch: int, decode_limit: int | None) -> MemoryPlan:
        """With so many of the DiT's blocks coming and going."""
        weights = self._weights
        names = {*offload, DIT_LAYERWISE} if streamed else set(offload)
        which = spread(streamed, len(weights.dit_blocks))
        blocks = [weights.dit_blocks[block] for block in which]
        on_device, host = weights.total, sum(blocks)
        if blocks:
            on_device += slot_bytes(blocks, prefetch) - sum(blocks)
        if TEXT_ENCODER in names:
            text = sum(weights.text_layers) + weights.text_rest
            on_device += slot_bytes(weights.text_layers, prefetch) - text
            host += text
        if DIT in names:
            host += sum(weights.dit_blocks) + weights.dit_rest
        if VAE in names:
            host += weights.vae
        return MemoryPlan(
            offload=tuple(name for name in OFFLOADS if name in names),
            blocks=len(weights.dit_blocks),
            streamed=which,
            prefetch=prefetch,
            decode_limit=decode_limit,
            weights=on_device,
            host=host,
            work=self._before_decoding + self._decoding[decode_limit],
            copied_per_step=sum(blocks),
            copied_per_prompt=sum(weights.text_layers) if TEXT_ENCODER in names else 0,
            tiled=self._decoding[decode_limit] < self._decoding[None],
            dequantized=weights.dequantized,
            loras=self._loras,
            communication=self._communication,
        )

    def cost(self, plan: MemoryPlan) -> tuple[float, ...]:
        """What is least of the best plan: whether copies are waited for, how much is copied for an image, and then how
        small its tiles are."""
        copied = plan.copied_per_step * self._steps + plan.copied_per_prompt
        return plan.prefetch == 0 and copied > 0, copied, -(plan.decode_limit or 0), -plan.prefetch


def _decode_limits(model: ModelConfig, bytes_per_element: int) -> Iterator[int]:
    """What a plan may leave to decoding: enough for the default size at once, or for smaller and smaller tiles."""
    size = model.default_width, model.default_height
    yield decode_bytes(model, *size, bytes_per_element)
    for side in _TILES:
        if side * model.vae.scale_factor < max(size):
            yield tiled_decode_bytes(model, *size, bytes_per_element, side)


def spread(count: int, blocks: int) -> tuple[int, ...]:
    """So many of the blocks, evenly: while those between two of them compute, the second is copied."""
    return tuple(block for block in range(blocks) if (block + 1) * count // blocks > block * count // blocks)


def slot_bytes(blocks: Sequence[int], prefetch: int) -> int:
    """The places on the device that blocks of these sizes take turns in, `prefetch` being copied beside one in use."""
    return min(prefetch + 1, len(blocks)) * max(blocks)


def shown(size: int) -> str:
    """A number of bytes for people; never less than it is, so that a budget of what is shown is enough."""
    unit, name = (10**9, "GB") if size >= 10**9 else (10**6, "MB")
    return f"{math.ceil(size * 100 / unit) / 100:.2f} {name}"
