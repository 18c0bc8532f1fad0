"""The diffusion transformer on a packed batch: one denoise step for images of any sizes and timesteps at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from engine.config.components import TransformerConfig
from engine.kernels.attention.backends import GatedAttentionKernel
from engine.kernels.norm import add_rms_norm_modulate_, rms_norm_modulate
from engine.kernels.packing import Packing
from engine.model.batch import Layout
from engine.model.layers import GatedAttention, RMSNorm, SwiGLU, Visit
from engine.model.text_fusion import TextFusion
from engine.parallel.group import Group
from engine.parallel.linear import Linear
from engine.parallel.row_share import RowShare


@dataclass(frozen=True)
class TimeModulation:
    """What the timesteps of a schedule say to the blocks and to the final layer, float32.

    block: (steps, 6 · width), shared by all blocks, each of which adds its own table; final: (steps, width).
    """

    block: torch.Tensor
    final: torch.Tensor


class Transformer(nn.Module):
    """Krea 2's single-stream diffusion transformer with its text fusion."""

    def __init__(
        self,
        config: TransformerConfig,
        group: Group,
        attention: GatedAttentionKernel,
        text_attention: GatedAttentionKernel,
    ) -> None:
        """group: over whose ranks matrices are split. attention: of the blocks; text_attention: of text fusion, which
        meets other lengths."""
        super().__init__()
        self.img_in = Linear(config.in_channels, config.hidden_size)
        self.time_embed = _TimeEmbedding(config)
        self.time_mod_proj = Linear(config.hidden_size, 6 * config.hidden_size)
        self.text_fusion = TextFusion(config, group, text_attention)
        self.txt_in = _TextProjection(config)
        self.transformer_blocks = nn.ModuleList(_Block(config, group, attention) for _ in range(config.num_layers))
        self.final_layer = _FinalLayer(config)
        self.visit: Visit = iter  # the blocks of a step, in order, each on the device while it is used

    @property
    def attends_to_fp8(self) -> bool:
        """Whether the blocks' attention hands its result on as fp8 rows."""
        return cast(_Block, self.transformer_blocks[0]).attn.out.takes_fp8

    def encode_text(self, states: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Tapped hidden states of packed prompts (tokens, layers, text width) → text features (tokens, width).

        Independent of the timestep: once per prompt.
        """
        return self.txt_in(self.text_fusion(states, packing))

    def encode_timesteps(self, timesteps: torch.Tensor) -> TimeModulation:
        """timesteps: (steps,) in [0, 1], float32. Once per schedule."""
        embedding = self.time_embed(timesteps)
        block = self.time_mod_proj(F.gelu(embedding, approximate="tanh"))
        return TimeModulation(block.float(), embedding.float())

    def forward(
        self,
        text: list[torch.Tensor],
        latents: list[torch.Tensor],
        modulation: TimeModulation,
        layout: Layout,
        *,
        denoise: Callable[..., torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """One denoise step of a packed batch: the velocities.

        text: each segment's text features, (text tokens, width). latents: each image's tokens, (image tokens,
        in_channels) float32, image i being the one that segments call `image` i. modulation: a row per segment.
        denoise: stands in for the method of that name, as a CUDA graph of it does. Returns
        (image tokens of all segments, in_channels) float32, segment after segment.
        """
        share = layout.share
        x = share.take_own(self.embed(text, latents, layout))
        velocities = (denoise or self.denoise)(x, modulation, share, layout.rotations)
        return layout.take_images(share.gather_whole(velocities))

    def embed(self, text: list[torch.Tensor], latents: list[torch.Tensor], layout: Layout) -> torch.Tensor:
        """Text features and embedded image tokens, packed: (tokens, width)."""
        return layout.pack(text, self.img_in(torch.cat(latents).to(self.img_in.weight.dtype)))

    def denoise(
        self, x: torch.Tensor, modulation: TimeModulation, share: RowShare, rotations: torch.Tensor
    ) -> torch.Tensor:
        """The blocks and the final layer: the velocity of each of the rank's own rows, (own rows, in_channels) float32.

        x: (own rows, width), overwritten. rotations: of the rows that the rank multiplies, (rows, head_dim / 2). Ranks
        that split the matrices norm, modulate and add residuals each for its own rows, which are gathered for the
        matrices; what these give is summed up for each rank's own rows alone. The velocities of text rows mean nothing.
        Reads nothing of `share` that CUDA graphs could not hold. Every residual is added by the norm that follows it,
        the last one by the final layer's.
        """
        eps = self.final_layer.norm.eps
        blocks = cast(list[_Block], list(self.transformer_blocks))
        followers: list[_Block | _FinalLayer] = [*blocks[1:], self.final_layer]
        vectors = blocks[0].modulate(modulation)
        y = rms_norm_modulate(x, vectors[:, 0], vectors[:, 1], eps, share.own, fp8=blocks[0].takes_fp8)
        for block, follower in zip(self.visit(blocks), followers, strict=True):
            _, _, gate, factor, shift, last_gate = vectors.unbind(1)
            update = block.attn(share.gather(y), share, rotations)
            y = add_rms_norm_modulate_(x, update, gate, factor, shift, eps, share.own, fp8=block.ff.takes_fp8)
            update = block.ff(share.gather(y), share)
            vectors = follower.modulate(modulation)
            factor, shift = vectors[:, 0], vectors[:, 1]
            y = add_rms_norm_modulate_(x, update, last_gate, factor, shift, eps, share.own, fp8=follower.takes_fp8)
        return self.final_layer.linear(y).float()


class _Block(nn.Module):
    """The parts of a block; `Transformer.denoise` puts them together, since it fuses what lies between blocks."""

    def __init__(self, config: TransformerConfig, group: Group, attention: GatedAttentionKernel) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.norm1 = RMSNorm(width, eps)
        self.attn = GatedAttention(width, config.num_heads, config.num_kv_heads, config.head_dim, eps, group, attention)
        self.norm2 = RMSNorm(width, eps)
        self.ff = SwiGLU(width, config.intermediate_size, group)

    @property
    def takes_fp8(self) -> bool:
        return self.attn.qkvg.takes_fp8

    def modulate(self, modulation: TimeModulation) -> torch.Tensor:
        """(segments, 6, width) float32: factor and shift for the norm before attention and attention's gate, then the
        same for the feed-forward. A factor is the norm's weight · (1 + scale)."""
        return torch.addcmul(self._offset, self._slope, modulation.block.unflatten(-1, (6, -1)))

    @cached_property
    def _slope(self) -> torch.Tensor:
        ones = torch.ones_like(self.norm1.weight)
        return torch.stack([self.norm1.weight, ones, ones, self.norm2.weight, ones, ones])

    @cached_property
    def _offset(self) -> torch.Tensor:
        prescale, preshift, pregate, postscale, postshift, postgate = self.scale_shift_table
        factors = self.norm1.weight * (1 + prescale), self.norm2.weight * (1 + postscale)
        return torch.stack([factors[0], preshift, pregate, factors[1], postshift, postgate])


class _FinalLayer(nn.Module):
    takes_fp8 = False

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(2, config.hidden_size))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.linear = Linear(config.hidden_size, config.in_channels)

    def modulate(self, modulation: TimeModulation) -> torch.Tensor:
        """(segments, 2, width) float32: factor and shift for the norm."""
        return torch.addcmul(self._offset, self._slope, modulation.final[:, None])

    @cached_property
    def _slope(self) -> torch.Tensor:
        return torch.stack([self.norm.weight, torch.ones_like(self.norm.weight)])

    @cached_property
    def _offset(self) -> torch.Tensor:
        scale, shift = self.scale_shift_table
        return torch.stack([self.norm.weight * (1 + scale), shift])


class _TimeEmbedding(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_dim = config.timestep_embed_dim
        self.linear_1 = Linear(config.timestep_embed_dim, config.hidden_size)
        self.linear_2 = Linear(config.hidden_size, config.hidden_size)

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Sinusoid of 1000 · t, cosines first, period 10,000 → Linear → GELU(tanh) → Linear: (steps, width)."""
        dtype = self.linear_1.weight.dtype
        half = self.embed_dim // 2
        steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        frequencies = torch.exp(-math.log(1e4) * steps / half)
        # the references round t to the model's dtype before the sinusoid
        angles = (timesteps.to(dtype).float() * 1e3)[:, None] * frequencies
        sinusoid = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).to(dtype)
        return self.linear_2(F.gelu(self.linear_1(sinusoid), approximate="tanh"))


class _TextProjection(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.text_hidden_size, config.norm_eps)
        self.linear_1 = Linear(config.text_hidden_size, config.hidden_size)
        self.linear_2 = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(self.norm(x)), approximate="tanh"))
