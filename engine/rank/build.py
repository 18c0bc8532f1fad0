"""Builds a rank's share of the model on its device: from a config and a mesh to modules with their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import nn

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.load import LoadOptions, bytes_to_read, load_weights
from engine.checkpoint.reading import Reading
from engine.checkpoint.weight_format import Weights
from engine.config.components import VAE_ENCODER
from engine.config.engine_config import EngineConfig
from engine.device.devices import (
    check_quantization,
    decoding_dtype,
    device_name,
    free_bytes,
    multiplies_fp8,
    pick_dtype,
    ranks_on_device,
)
from engine.device.rates import device_rates
from engine.kernels.attention.backends import GatedAttentionKernel
from engine.kernels.attention.choice import AttentionShape, choose_attention, unavailable
from engine.lora.merge import MergedWeights
from engine.model.text_encoder import TextEncoder
from engine.model.transformer import Transformer
from engine.model.vae import VAEDecoder
from engine.model.vae_encoder import VAEEncoder
from engine.offload.offload import Offload, limit_allocations, plan_for
from engine.offload.refusal import check_room, find_room
from engine.parallel.greeting import agree_on_attention
from engine.parallel.group import Group, LocalGroup
from engine.parallel.mesh import Mesh
from engine.planning.floor import block_parameters, text_encoder_parameters
from engine.planning.memory_plan import MemoryPlan
from engine.planning.step_memory import DecodeMemory, batch_bytes, decode_bytes, encode_bytes
from engine.step import Reach

TYPICAL_PROMPT_TOKENS = 64
# Pixels of a guided image's sides that there must be memory for beside a whole text encoder on each rank.
_ROOM_SIDE = 2048
# How often an image has a length that none before it had, for which some attention first builds a plan.
_IMAGES_PER_NEW_LENGTH = 10


class RankModel:
    """A rank's share of the model on its device, and what it was built by: the `engine`'s config and the mesh.

    config: the checkpoint's sizes. attention, attention_choice: the DiT's, and why its backends are these. vae: None
    where nothing is decoded; vae_encoder: None where no picture is encoded. encodes_alone: the text encoder is whole,
    so that no layer waits for other ranks.
    """

    def __init__(
        self,
        engine: EngineConfig,
        mesh: Mesh,
        device: torch.device,
        weights: Weights | None,
        local_ranks: int | None,
        on_read: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Load the share of the checkpoint, or of `weights`. Arguments and errors as of `Rank`."""
        self.engine, self.mesh, self.device = engine, mesh, device
        on_machine = local_ranks or mesh.world.size
        sharing = mesh.sharing or ranks_on_device(device, on_machine)
        group, dtype = mesh.tp, self.dtype
        check_quantization(engine, device)
        if dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # convolutions too are what was asked for
        split = False
        if weights is None:
            weights = files = CheckpointFiles.open(engine, group.rank)
            split = files.split_for is not None
        if engine.merge_loras:
            weights = MergedWeights(weights, engine)
        self.config = config = weights.config
        config.check_parallel(group.size, mesh.sp.size)
        self.attention = GatedAttentionKernel()
        self.choose_attention(measured=False)
        flash = unavailable("flash", device, dtype, config.transformer.text_head_dim) is None
        text_attention = GatedAttentionKernel("flash" if flash else "torch")

        make_plan = partial(plan_for, engine, weights, sharing, device, dtype)
        whole_text_encoder = not split and self._has_room_for_whole_text_encoder(make_plan, sharing)
        text_group = LocalGroup() if whole_text_encoder else group
        self.encodes_alone, self._text_ranks = text_group.size == 1, text_group.size
        with torch.device("meta"):
            self.text_encoder = TextEncoder(config, text_group)
            self.transformer = Transformer(config.transformer, group, self.attention, text_attention)
            has_vae = mesh.world.rank == 0 or engine.decodes_together
            self.vae = VAEDecoder(config.vae) if has_vae else None
            self.vae_encoder = VAEEncoder(config.vae) if has_vae and engine.image_input else None
        plan = make_plan(whole_text_encoder=whole_text_encoder)
        world, room = mesh.world, find_room(device, sharing, on_machine, is_split=split)
        check_room(plan, weights, engine, room, device, rank=world.rank, ranks=world.size, share=world.all_reduce)
        limit_allocations(plan, device)
        self.offload = Offload(plan, device, sharing, encode_bytes(config, group.size, dtype.itemsize))
        modules: dict[str, tuple[nn.Module, Group]] = {
            "text_encoder": (self.text_encoder, text_group),
            "transformer": (self.transformer, group),
        }
        if self.vae is not None:
            modules["vae"] = self.vae, group
        if self.vae_encoder is not None:
            modules[VAE_ENCODER] = self.vae_encoder, group
        to_read = sum(
            bytes_to_read(weights, component, rank=of.rank, size=of.size) for component, (_, of) in modules.items()
        )
        options = LoadOptions(
            device,
            dtype,
            engine.quantization,
            fp8_products=multiplies_fp8(device, dtype),
            reading=Reading(to_read, on_read),
        )
        options.reading.look()
        for component, (module, of) in modules.items():
            where = replace(options, on_host=self.offload.on_host(component))
            load_weights(module, weights, component, rank=of.rank, size=of.size, options=where)
            self.offload.take(component, module)
        weights.close()

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return pick_dtype(self.engine, self.device)

    @property
    def decode_memory(self) -> DecodeMemory:
        """What decoding takes of memory, and may take."""
        return DecodeMemory(decoding_dtype(self.device, self.dtype).itemsize, self.offload.plan.decode_limit)

    @cached_property
    def reach(self) -> Reach:
        """What this rank's device reaches, and what of the weights it reads. On a CPU it is measured, once."""
        rates = device_rates(self.device, self.dtype)
        if rates is None:
            return Reach(device_name(self.device))
        config, text_ranks = self.config, self._text_ranks
        blocks = block_parameters(config.transformer) // self.mesh.tp.size
        layers = text_encoder_parameters(config.text_encoder, config.text_layers) // text_ranks
        return Reach(
            device=device_name(self.device),
            source=rates.source,
            flops=rates.flops,
            block_flops=rates.fp8_flops if self.transformer.multiplies_fp8 else rates.flops,
            attention_flops=rates.attention_flops,
            decode_flops=rates.flops if decoding_dtype(self.device, self.dtype) == self.dtype else 0.0,
            memory_bytes=rates.memory_bytes,
            block_bytes=blocks * _least_itemsize(self.transformer.transformer_blocks),
            text_bytes=layers * _least_itemsize(self.text_encoder.layers),
            text_ranks=text_ranks,
        )

    @property
    def saves_memory(self) -> bool:
        """Whether the engine's config says anything about what lies where."""
        return bool(self.engine.offload) or self.engine.memory_budget is not None

    def describe_plan(self) -> tuple[str, ...]:
        """Say what lies where, for people, if the engine's config says anything about it."""
        return tuple(self.offload.plan.describe()) if self.saves_memory else ()

    def choose_attention(self, *, measured: bool) -> None:
        """Set the attention's backends by the engine's config, for images of the default size: the same on all ranks.
        measured: by how long each takes here, once there is a transformer."""
        config, dit, size = self.config, self.config.transformer, self.mesh.tp.size * self.mesh.sp.size
        shape = AttentionShape(
            heads=dit.num_heads // size,
            kv_heads=dit.num_kv_heads // size,
            head_dim=dit.head_dim,
            lengths=(config.image_tokens(config.default_width, config.default_height) + TYPICAL_PROMPT_TOKENS,),
            fp8=measured and self.transformer.attends_to_fp8,
        )
        self.attention_choice = choice = choose_attention(
            self.engine.attention,
            shape,
            self.device,
            self.dtype,
            calls=_IMAGES_PER_NEW_LENGTH * config.default_steps * dit.num_layers,
            measured=measured,
            agree=partial(agree_on_attention, self.mesh.world, self.device),
        )
        self.attention.backend, self.attention.captured_backend = choice.backend, choice.captured_backend

    def _has_room_for_whole_text_encoder(self, make_plan: Callable[..., MemoryPlan], sharing: int) -> bool:
        """Whether tensor parallel ranks keep the whole text encoder each, if all have a GPU with memory for it: then no
        layer waits for other ranks, and encoding can be recorded as a graph. Not where memory is to be saved."""
        config, world, element = self.config, self.mesh.world, self.dtype.itemsize
        if self.mesh.tp.size == 1:
            return True
        if self.device.type != "cuda" or self.saves_memory:
            return False
        tokens = config.image_tokens(_ROOM_SIDE, _ROOM_SIDE)
        room = batch_bytes(config, [tokens, tokens], self.engine.degrees, element)
        room += decode_bytes(config, _ROOM_SIDE, _ROOM_SIDE, element)
        plan = make_plan(whole_text_encoder=True)
        plan = replace(plan, work=max(plan.work, room), communication=0)  # NCCL has it already
        free = (free_bytes(self.device) or 0) // sharing
        fits = world.all_reduce(torch.tensor([float(plan.needed <= free)], device=self.device))
        return fits.item() == world.size


def _least_itemsize(layers: nn.Module) -> int:
    """Bytes of an element of those matrices that have the smallest."""
    return min(parameter.element_size() for parameter in layers.parameters() if parameter.dim() == 2)
