"""Builds a rank's share of the model on its device: from a config and a mesh to modules with their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.load import LoadOptions, load_weights
from engine.checkpoint.weight_format import Weights
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.device.devices import (
    check_quantization,
    decoding_dtype,
    free_bytes,
    multiplies_fp8,
    pick_dtype,
    ranks_on_device,
)
from engine.kernels.attention.backends import GatedAttentionKernel
from engine.kernels.attention.choice import AttentionChoice, AttentionShape, choose_attention, unavailable
from engine.lora.merge import MergedWeights
from engine.model.text_encoder import TextEncoder
from engine.model.transformer import Transformer
from engine.model.vae import VAEDecoder
from engine.offload.offload import Offload, limit_allocations, plan_for
from engine.parallel.attention_agreement import agree_on_attention
from engine.parallel.group import LocalGroup
from engine.parallel.mesh import Mesh
from engine.planning.memory_plan import MemoryPlan
from engine.planning.step_memory import DecodeMemory, batch_bytes, decode_bytes

TYPICAL_PROMPT_TOKENS = 64
# Pixels of a guided image's sides that there must be memory for beside a whole text encoder on each rank.
_ROOM_SIDE = 2048
# How often an image has a length that none before it had, for which some attention first builds a plan.
_IMAGES_PER_NEW_LENGTH = 10


@dataclass
class RankModel:
    """What a rank has of the model, and what it was built by. `vae`: None where nothing is decoded. sharing: how many
    ranks share the device. encodes_alone: its text encoder is whole, so that no layer waits for other ranks."""

    engine: EngineConfig
    config: ModelConfig
    mesh: Mesh
    device: torch.device
    dtype: torch.dtype
    sharing: int
    attention: GatedAttentionKernel
    attention_choice: AttentionChoice
    text_encoder: TextEncoder
    transformer: Transformer
    vae: VAEDecoder | None
    offload: Offload
    bytes_read: int
    encodes_alone: bool

    @property
    def plan(self) -> MemoryPlan:
        return self.offload.plan

    @property
    def decode_memory(self) -> DecodeMemory:
        return DecodeMemory(decoding_dtype(self.device, self.dtype).itemsize, self.plan.decode_limit)

    @property
    def saves_memory(self) -> bool:
        """Whether the config says anything about what lies where."""
        return _saves_memory(self.engine)

    def measure_attention(self) -> None:
        """Choose the attention's backends again, by how long each takes here."""
        fp8 = self.transformer.attends_to_fp8
        self.attention_choice = _choose_backends(
            self.engine, self.config, self.mesh, self.device, self.dtype, self.attention, measured=True, fp8=fp8
        )


def build_model(
    engine: EngineConfig, mesh: Mesh, device: torch.device, weights: Weights | None, local_ranks: int | None
) -> RankModel:
    """Load a rank's share of the checkpoint, or of `weights`. Arguments and errors as of `Rank`."""
    sharing = mesh.sharing or ranks_on_device(device, local_ranks or mesh.world.size)
    group = mesh.tp
    dtype = pick_dtype(engine, device)
    check_quantization(engine, device)
    if dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False  # convolutions too are what was asked for
    split = False
    if weights is None:
        weights = files = CheckpointFiles.open(engine, group.rank)
        split = files.split_for is not None
    if engine.merge_loras:
        weights = MergedWeights(weights, engine)
    config = weights.config
    config.check_parallel(group.size, mesh.sp.size)
    attention = GatedAttentionKernel()
    choice = _choose_backends(engine, config, mesh, device, dtype, attention, measured=False, fp8=False)
    flash = unavailable("flash", device, dtype, config.transformer.text_head_dim) is None
    text_attention = GatedAttentionKernel("flash" if flash else "torch")

    whole_text_encoder = not split and _has_room_for_whole_text_encoder(engine, weights, mesh, device, dtype, sharing)
    text_group = LocalGroup() if whole_text_encoder else group
    with torch.device("meta"):
        text_encoder = TextEncoder(config, text_group)
        transformer = Transformer(config.transformer, group, attention, text_attention)
        has_vae = mesh.world.rank == 0 or engine.decodes_together
        vae = VAEDecoder(config.vae) if has_vae else None
    plan = plan_for(engine, weights, group.size, sharing, device, dtype, whole_text_encoder=whole_text_encoder)
    limit_allocations(plan, device)
    offload = Offload(plan, device)
    options = LoadOptions(device, dtype, engine.quantization, fp8_products=multiplies_fp8(device, dtype))
    modules = {"text_encoder": text_encoder, "transformer": transformer, "vae": vae}
    bytes_read = 0
    for component, module in modules.items():
        if module is not None:
            where = replace(options, on_host=offload.on_host(component))
            of = text_group if component == "text_encoder" else group
            bytes_read += load_weights(module, weights, component, rank=of.rank, size=of.size, options=where)
            offload.take(component, module)
    weights.close()
    return RankModel(
        engine=engine,
        config=config,
        mesh=mesh,
        device=device,
        dtype=dtype,
        sharing=sharing,
        attention=attention,
        attention_choice=choice,
        text_encoder=text_encoder,
        transformer=transformer,
        vae=vae,
        offload=offload,
        bytes_read=bytes_read,
        encodes_alone=text_group.size == 1,
    )


def _saves_memory(engine: EngineConfig) -> bool:
    return bool(engine.offload) or engine.memory_budget is not None


def _has_room_for_whole_text_encoder(
    engine: EngineConfig, weights: Weights, mesh: Mesh, device: torch.device, dtype: torch.dtype, sharing: int
) -> bool:
    """Whether tensor parallel ranks keep the whole text encoder each, if all have a GPU with memory for it: then no
    layer waits for other ranks, and encoding can be recorded as a graph. Not where memory is to be saved."""
    config, tp, world = weights.config, mesh.tp.size, mesh.world
    if tp == 1:
        return True
    if device.type != "cuda" or _saves_memory(engine):
        return False
    plan = plan_for(engine, weights, tp, sharing, device, dtype, whole_text_encoder=True)
    tokens, element = config.image_tokens(_ROOM_SIDE, _ROOM_SIDE), dtype.itemsize
    room = batch_bytes(config, [tokens, tokens], engine.degrees, element)
    room += decode_bytes(config, _ROOM_SIDE, _ROOM_SIDE, element)
    plan = replace(plan, work=max(plan.work, room), communication=0)  # NCCL has it already
    free = (free_bytes(device) or 0) // sharing
    fits = world.all_reduce(torch.tensor([float(plan.needed <= free)], device=device))
    return fits.item() == world.size


def _choose_backends(
    engine: EngineConfig,
    config: ModelConfig,
    mesh: Mesh,
    device: torch.device,
    dtype: torch.dtype,
    attention: GatedAttentionKernel,
    *,
    measured: bool,
    fp8: bool,
) -> AttentionChoice:
    """Set the attention's backends by the config, for images of the default size: the same on all ranks."""
    dit, size = config.transformer, mesh.tp.size * mesh.sp.size
    shape = AttentionShape(
        heads=dit.num_heads // size,
        kv_heads=dit.num_kv_heads // size,
        head_dim=dit.head_dim,
        lengths=(config.image_tokens(config.default_width, config.default_height) + TYPICAL_PROMPT_TOKENS,),
        fp8=fp8,
    )
    choice = choose_attention(
        engine.attention,
        shape,
        device,
        dtype,
        calls=_IMAGES_PER_NEW_LENGTH * config.default_steps * dit.num_layers,
        measured=measured,
        agree=partial(agree_on_attention, mesh.world, device),
    )
    attention.backend, attention.captured_backend = choice.backend, choice.captured_backend
    return choice
