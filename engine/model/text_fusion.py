"""Text fusion: a stack of hidden states per token becomes one vector per token. Runs once per prompt."""

from __future__ import annotations

import torch
from torch import nn

from engine.config.components import TransformerConfig
from engine.kernels.attention.backends import GatedAttentionKernel
from engine.kernels.norm import add_rms_norm
from engine.kernels.packing import Packing
from engine.model.layers import GatedAttention, RMSNorm, SwiGLU
from engine.parallel.group import Group
from engine.parallel.linear import Linear
from engine.parallel.row_share import RowShare


class TextFusion(nn.Module):
    """Layer-wise blocks attend over a token's own layers, the projector mixes those into one, refiner blocks attend
    over the prompt's tokens. No positions, no mask, no timestep."""

    def __init__(self, config: TransformerConfig, group: Group, attention: GatedAttentionKernel) -> None:
        super().__init__()

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(_FusionBlock(config, group, attention) for _ in range(count))

        self.layerwise_blocks = blocks(config.num_layerwise_text_blocks)
        self.projector = Linear(config.num_text_layers, 1, bias=False)
        self.refiner_blocks = blocks(config.num_refiner_text_blocks)

    def forward(self, states: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Fuse the layers of packed prompts: (tokens, layers, text width) → (tokens, text width)."""
        tokens, layers, _ = states.shape
        x = states.flatten(0, 1)
        of_tokens, of_prompts = RowShare(Packing([layers] * tokens, x.device)), RowShare(packing)
        for block in self.layerwise_blocks:
            x = block(x, of_tokens)
        x = self.projector(x.unflatten(0, (tokens, layers)).transpose(1, 2)).squeeze(-1)
        for block in self.refiner_blocks:
            x = block(x, of_prompts)
        return x


class _FusionBlock(nn.Module):
    def __init__(self, config: TransformerConfig, group: Group, attention: GatedAttentionKernel) -> None:
        super().__init__()
        width, eps = config.text_hidden_size, config.norm_eps
        self.norm1 = RMSNorm(width, eps)
        self.attn = GatedAttention(
            width, config.text_num_heads, config.text_num_kv_heads, config.text_head_dim, eps, group, attention
        )
        self.norm2 = RMSNorm(width, eps)
        self.ff = SwiGLU(width, config.text_intermediate_size, group)

    def forward(self, x: torch.Tensor, share: RowShare) -> torch.Tensor:
        """Let each row attend to its segment: (rows, text width) → (rows, text width)."""
        x, y = add_rms_norm(x, self.attn(self.norm1(x), share, None), self.norm2.weight_in_force, self.norm2.eps)
        return x + self.ff(y)
