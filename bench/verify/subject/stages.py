"""The stages of the model, in the order in which they run, and what the engine's modules make of each one's input.

A stage is given the input that diffusers' stage had, not what the engine's stages before it made, so that an error is
told of the stage that makes it and not of later ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from engine.config.chat_template import PREFIX_TOKENS
from engine.config.model_config import ModelConfig
from engine.device.devices import decoding_dtype
from engine.kernels.norm import rms_norm_modulate
from engine.kernels.packing import Packing
from engine.kernels.rope import image_rotations, text_rotations
from engine.model.batch import Layout, Segment
from engine.model.patches import unpack_latents
from engine.model.text_encoder import TextEncoder
from engine.model.transformer import TimeModulation
from engine.model.vae import VAEDecoder
from engine.parallel.mesh import Mesh
from engine.parallel.row_share import ImageRows, RowShare
from engine.rank.rank import Rank

EMBEDDING = "text encoder embedding"
LAYER = "text encoder layer {}"
NORM = "text encoder final norm"
TAP = "text encoder tap {}"
LAYERWISE = "text fusion layer-wise block {}"
PROJECTOR = "text fusion projector"
REFINER = "text fusion refiner block {}"
TEXT_IN = "text in-projection"
TIME = "time embedding"
MODULATION = "time modulation"
IMAGE_IN = "image in-projection"
BLOCK = "transformer block {}"
FINAL = "final layer"
SCALED = "VAE input: latents' mean and std"
POST_QUANT = "VAE post_quant_conv"
CONV_IN = "VAE conv_in"
MIDDLE = "VAE mid block"
UP = "VAE up block {}"
HEAD = "VAE norm_out and conv_out"

# Inputs that several stages share, beside the stages' own, which have the stages' names.
TIMESTEP, BLOCK_MODULATION, TIME_VECTOR = "timestep", "block modulation", "time vector"

Tensors = Mapping[str, torch.Tensor]
Stages = Iterator[tuple[str, Callable[[], torch.Tensor]]]


@dataclass(frozen=True)
class Traced:
    """Whose stages they are: the token ids of a prompt, and the size of an image in pixels."""

    ids: tuple[int, ...]
    width: int
    height: int


def residual_stages(config: ModelConfig) -> set[str]:
    """Return the stages that add to their input. What they add may not be wrong; their input can be much larger."""
    dit = config.transformer
    return {
        *(LAYER.format(i) for i in range(config.text_layers)),
        *(LAYERWISE.format(i) for i in range(dit.num_layerwise_text_blocks)),
        *(REFINER.format(i) for i in range(dit.num_refiner_text_blocks)),
        *(BLOCK.format(i) for i in range(dit.num_layers)),
    }


def before_the_decoder(config: ModelConfig) -> list[str]:
    """Of the text encoder, text fusion and one denoise step, in order."""
    dit, taps = config.transformer, config.text_encoder_taps
    return [
        EMBEDDING,
        *(LAYER.format(i) for i in range(config.text_layers)),
        *([NORM] if max(taps) == config.text_encoder.num_layers else []),
        *dict.fromkeys(TAP.format(tap) for tap in taps),
        *(LAYERWISE.format(i) for i in range(dit.num_layerwise_text_blocks)),
        PROJECTOR,
        *(REFINER.format(i) for i in range(dit.num_refiner_text_blocks)),
        TEXT_IN,
        TIME,
        MODULATION,
        IMAGE_IN,
        *(BLOCK.format(i) for i in range(dit.num_layers)),
        FINAL,
    ]


def of_the_decoder(config: ModelConfig) -> list[str]:
    return [SCALED, POST_QUANT, CONV_IN, MIDDLE, *(UP.format(i) for i in range(len(config.vae.dim_mult))), HEAD]


def stages_of_text(rank: Rank, traced: Traced, inputs: Tensors) -> Stages:
    """Of the text encoder, then its taps, which are made of the tokens alone and so gather all its errors."""
    encoder, config = rank.model.text_encoder, rank.model.config
    ids = torch.tensor(traced.ids, device=rank.model.device)
    packing = Packing([len(ids)], rank.model.device)
    rotations = text_rotations(torch.arange(len(ids), device=rank.model.device), encoder.head_dim, encoder.rope_theta)
    yield EMBEDDING, partial(encoder.embed_tokens, ids, rank.model.device)
    for index in range(config.text_layers):
        name = LAYER.format(index)
        yield name, partial(_apply, rank, encoder.layers[index], inputs, name, packing, rotations)
    if encoder.norm is not None:
        yield NORM, partial(_apply, rank, encoder.norm, inputs, NORM)
    for place, tap in enumerate(config.text_encoder_taps):
        yield TAP.format(tap), partial(_tap, encoder, ids, packing, place)


def _tap(encoder: TextEncoder, ids: torch.Tensor, packing: Packing, place: int) -> torch.Tensor:
    return encoder(ids, packing)[PREFIX_TOKENS:, place]


def stages_of_transformer(rank: Rank, traced: Traced, inputs: Tensors) -> Stages:
    """Of text fusion and of one denoise step."""
    transformer, config = rank.model.transformer, rank.model.config.transformer
    fusion = transformer.text_fusion
    text_tokens = len(traced.ids) - PREFIX_TOKENS
    tokens = RowShare(Packing([text_tokens], rank.model.device))
    layers = RowShare(Packing([config.num_text_layers] * text_tokens, rank.model.device))
    for index, block in enumerate(fusion.layerwise_blocks):
        yield LAYERWISE.format(index), partial(_apply, rank, block, inputs, LAYERWISE.format(index), layers)
    yield PROJECTOR, partial(_project, rank, inputs)
    for index, block in enumerate(fusion.refiner_blocks):
        yield REFINER.format(index), partial(_apply, rank, block, inputs, REFINER.format(index), tokens)
    yield TEXT_IN, partial(_apply, rank, transformer.txt_in, inputs, TEXT_IN)

    yield TIME, partial(_time_vector, rank, inputs)
    yield MODULATION, partial(_block_modulation, rank, inputs)
    multiple = rank.model.config.size_multiple
    rows, columns = traced.height // multiple, traced.width // multiple
    grid = image_rotations(rows, columns, config.axes_dims_rope, config.rope_theta).to(rank.model.device)
    mesh: Mesh = rank.model.mesh
    layout = Layout((Segment(0, text_tokens, rows, columns),), [grid], mesh.sp, mesh.tp)
    yield IMAGE_IN, partial(_embed, rank, inputs, text_tokens, layout)
    for index in range(config.num_layers):
        yield BLOCK.format(index), partial(_block, rank, index, inputs, layout)
    yield FINAL, partial(_final_layer, rank, inputs)


def _apply(rank: Rank, module: nn.Module, inputs: Tensors, name: str, *others: object) -> torch.Tensor:
    """A module of this stage's input."""
    return module(_to(rank, inputs[name]), *others)


def _project(rank: Rank, inputs: Tensors) -> torch.Tensor:
    return rank.model.transformer.text_fusion.projector(_to(rank, inputs[PROJECTOR])).squeeze(-1)


def _time_vector(rank: Rank, inputs: Tensors) -> torch.Tensor:
    return rank.model.transformer.encode_timesteps(inputs[TIMESTEP].to(rank.model.device)).final


def _block_modulation(rank: Rank, inputs: Tensors) -> torch.Tensor:
    """With diffusers' time embedding in place of the engine's."""
    vector = _to(rank, inputs[TIME_VECTOR])
    handle = rank.model.transformer.time_embed.register_forward_hook(lambda *_: vector)
    try:
        return rank.model.transformer.encode_timesteps(inputs[TIMESTEP].to(rank.model.device)).block
    finally:
        handle.remove()


def _embed(rank: Rank, inputs: Tensors, text_tokens: int, layout: Layout) -> torch.Tensor:
    """All rows, text first, as diffusers gives them to the first block."""
    text = _to(rank, inputs[BLOCK.format(0)][:text_tokens])
    return rank.model.transformer.embed([text], [inputs[IMAGE_IN].to(rank.model.device)], layout)


def _block(rank: Rank, index: int, inputs: Tensors, layout: Layout) -> torch.Tensor:
    """The output of one block, by `Transformer.denoise` of a transformer that has no other: what it leaves in x."""
    transformer = rank.model.transformer
    x = layout.share.take_own(_to(rank, inputs[BLOCK.format(index)])).clone()
    every = transformer.transformer_blocks
    transformer.transformer_blocks = nn.ModuleList([every[index]])
    try:
        transformer.denoise(x, _modulation(rank, inputs), layout.share, layout.rotations)
    finally:
        transformer.transformer_blocks = every
    return layout.share.gather_whole(x)


def _modulation(rank: Rank, inputs: Tensors) -> TimeModulation:
    return TimeModulation(inputs[BLOCK_MODULATION].to(rank.model.device), inputs[TIME_VECTOR].to(rank.model.device))


def _final_layer(rank: Rank, inputs: Tensors) -> torch.Tensor:
    """Of the image's rows."""
    final, x = rank.model.transformer.final_layer, _to(rank, inputs[FINAL])
    vectors = final.modulate(_modulation(rank, inputs))
    y = rms_norm_modulate(x, vectors[:, 0], vectors[:, 1], final.norm.eps, Packing([len(x)], x.device))
    return final.linear(y).float()


def stages_of_vae(rank: Rank, traced: Traced, inputs: Tensors) -> Stages:
    """Of the decoder. SCALED's input is the final latents, as tokens."""
    vae = rank.model.vae
    assert vae is not None
    decoder = vae.decoder
    latents = latents_of(rank, traced, inputs[SCALED])
    yield SCALED, lambda: _vae_input(vae, latents)

    def image(name: str) -> torch.Tensor:
        x = inputs[name].to(rank.model.device, decoding_dtype(rank.model.device, rank.model.dtype))
        return x.contiguous(memory_format=torch.channels_last)

    yield POST_QUANT, lambda: vae.post_quant_conv(image(POST_QUANT))
    yield CONV_IN, lambda: decoder.conv_in(image(CONV_IN))
    height, width = latents.shape[2:]
    score_bytes = vae.score_bytes(height, width, None)
    yield MIDDLE, lambda: decoder.mid_block(image(MIDDLE), ImageRows(height), score_bytes)
    for index, block in enumerate(decoder.up_blocks):
        yield UP.format(index), partial(lambda block, name: block(image(name)), block, UP.format(index))
    yield HEAD, lambda: decoder.conv_out(decoder.norm_out(image(HEAD)))


def latents_of(rank: Rank, traced: Traced, tokens: torch.Tensor) -> torch.Tensor:
    """The picture's latents, (1, z_dim, h, w)."""
    config, multiple = rank.model.config, rank.model.config.size_multiple
    grid = traced.height // multiple, traced.width // multiple
    return unpack_latents(tokens.to(rank.model.device), *grid, config.patch_size)[None]


def _vae_input(vae: VAEDecoder, latents: torch.Tensor) -> torch.Tensor:
    """What the decoder's first convolution is given of these latents."""
    seen: list[torch.Tensor] = []
    handle = vae.post_quant_conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        vae(latents)
    finally:
        handle.remove()
    return seen[0]


def _to(rank: Rank, x: torch.Tensor) -> torch.Tensor:
    return x.to(rank.model.device, rank.model.dtype)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")
