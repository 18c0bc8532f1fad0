"""The diffusion transformer on a packed batch: one denoise step for images of any sizes and timesteps at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from engine.batch import Layout
from engine.config import TransformerConfig
from engine.kernels.norm import rms_norm_modulate
from engine.kernels.residual import add_gated_
from engine.model.layers import GatedAttention, RMSNorm, SwiGLU
from engine.model.text_fusion import TextFusion
from engine.parallel import Group, Linear


@dataclass(frozen=True)
class TimeModulation:
    """What the timesteps of a schedule say to the blocks and to the final layer, float32.

    block: (steps, 6 · width), shared by all blocks, each of which adds its own table; final: (steps, width).
    """

    block: torch.Tensor
    final: torch.Tensor


class Transformer(nn.Module):
    """Krea 2's single-stream diffusion transformer with its text fusion."""

    def __init__(self, config: TransformerConfig, group: Group) -> None:
        super().__init__()
        self.img_in = Linear(config.in_channels, config.hidden_size)
        self.time_embed = _TimeEmbedding(config)
        self.time_mod_proj = Linear(config.hidden_size, 6 * config.hidden_size)
        self.text_fusion = TextFusion(config, group)
        self.txt_in = _TextProjection(config)
        self.transformer_blocks = nn.ModuleList(_Block(config, group) for _ in range(config.num_layers))
        self.final_layer = _FinalLayer(config)

    def encode_text(self, states: torch.Tensor, bounds: tuple[int, ...]) -> torch.Tensor:
        """Tapped hidden states of packed prompts (tokens, layers, text width) → text features (tokens, width).

        Independent of the timestep: once per prompt.
        """
        return self.txt_in(self.text_fusion(states, bounds))

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
    ) -> torch.Tensor:
        """One denoise step of a packed batch: the velocities.

        text: each segment's text features, (text tokens, width). latents: each image's tokens, (image tokens,
        in_channels) float32, image i being the one that segments call `image` i. modulation: a row per segment. Returns
        (image tokens of all segments, in_channels) float32, segment after segment.
        """
        images = self.img_in(torch.cat(latents).to(self.img_in.weight.dtype))
        x = layout.pack(text, images)
        for block in self.transformer_blocks:
            x = block(x, modulation.block, layout)
        return self.final_layer(layout.take_images(x), modulation.final, layout).float()


class _Block(nn.Module):
    def __init__(self, config: TransformerConfig, group: Group) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.norm1 = RMSNorm(width, eps)
        self.attn = GatedAttention(width, config.num_heads, config.num_kv_heads, config.head_dim, eps, group)
        self.norm2 = RMSNorm(width, eps)
        self.ff = SwiGLU(width, config.intermediate_size, group)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor, layout: Layout) -> torch.Tensor:
        """x: (tokens, width), changed in place; modulation: (segments, 6 · width) float32."""
        table = modulation.unflatten(-1, (6, -1)) + self.scale_shift_table
        prescale, preshift, pregate, postscale, postshift, postgate = table.unbind(1)
        bounds = layout.bounds

        y = rms_norm_modulate(x, self.norm1.weight, self.norm1.eps, prescale, preshift, bounds)
        add_gated_(x, self.attn(y, bounds, layout.rotations), pregate, bounds)
        y = rms_norm_modulate(x, self.norm2.weight, self.norm2.eps, postscale, postshift, bounds)
        return add_gated_(x, self.ff(y), postgate, bounds)


class _FinalLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(2, config.hidden_size))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.linear = Linear(config.hidden_size, config.in_channels)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor, layout: Layout) -> torch.Tensor:
        """x: (image tokens, width), no text; modulation: (segments, width) float32. Returns (…, in_channels)."""
        scale, shift = (modulation[:, None] + self.scale_shift_table).unbind(1)
        return self.linear(rms_norm_modulate(x, self.norm.weight, self.norm.eps, scale, shift, layout.image_bounds))


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
