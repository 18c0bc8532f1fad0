"""The language model of Qwen3-VL on packed prompts, up to the last layer whose output Krea 2 looks at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from engine.config.components import TextEncoderConfig
from engine.config.model_config import ModelConfig
from engine.device.devices import to_device
from engine.kernels.attention.backends import packed_attention
from engine.kernels.norm import add_rms_norm
from engine.kernels.packing import Packing
from engine.kernels.rope import norm_rotate_, text_rotations
from engine.model.layers import RMSNorm, SwiGLU, Visit, visit_in_place
from engine.parallel.group import Group
from engine.parallel.linear import ColumnParallelLinear, RowParallelLinear


class TextEncoder(nn.Module):
    """The text encoder, from token ids to the tapped hidden states: tap 0 is the embedding, tap i the output of layer
    i."""

    def __init__(self, config: ModelConfig, group: Group) -> None:
        super().__init__()
        text = config.text_encoder
        self.taps = config.text_encoder_taps
        self.head_dim, self.rope_theta = text.head_dim, text.rope_theta
        self.embed_tokens = _Embedding(text.vocab_size, text.hidden_size)
        self.layers = nn.ModuleList(_Layer(text, group) for _ in range(config.text_layers))
        # the tuple of hidden states ends with the normed output of the last layer
        self.norm = RMSNorm(text.hidden_size, text.norm_eps) if max(self.taps) == text.num_layers else None
        self.visit: Visit = visit_in_place  # the layers in order, each on the device while it is used

    @property
    def ids_device(self) -> torch.device:
        """Where token ids are looked up, and best come from: the host, if the embedding lies in its memory, since to
        get them from the device it would wait for all that is queued there."""
        return self.embed_tokens.weight.device

    def forward(self, ids: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Encode packed prompts: (tokens,) int64 ids → (tokens, taps, width), on the packing's device.

        Attention is causal within a prompt and positions count from 0 in each, as in the references' padded and masked
        batch, of which these are the tokens that are real.
        """
        positions = torch.cat([torch.arange(length, device=packing.device) for length in packing.lengths])
        rotations = text_rotations(positions, self.head_dim, self.rope_theta)
        x = self.embed_tokens(ids, packing.device)
        states = [x]
        for layer in self.visit(list(self.layers)):
            x = layer(x, packing, rotations)
            states.append(x)
        if self.norm is not None:
            states[-1] = self.norm(x)
        return torch.stack([states[tap] for tap in self.taps], dim=1)


class _Embedding(nn.Module):
    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))

    def forward(self, ids: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Embed (tokens,) int64 ids → (tokens, width) on `device`. They are looked up where the table lies, so
        that of one in host memory only the rows that are needed are copied."""
        rows = F.embedding(ids.to(self.weight.device), self.weight)
        return rows if rows.device.type == device.type else to_device(rows, device)


class _Layer(nn.Module):
    def __init__(self, config: TextEncoderConfig, group: Group) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = _CausalAttention(config, group)
        self.norm2 = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, group)

    def forward(self, x: torch.Tensor, packing: Packing, rotations: torch.Tensor) -> torch.Tensor:
        """Map (tokens, width) → (tokens, width). rotations: (tokens, head_dim / 2) complex64."""
        update = self.attn(self.norm1(x), packing, rotations)
        x, y = add_rms_norm(x, update, self.norm2.weight, self.norm2.eps)
        return x + self.mlp(y)


class _CausalAttention(nn.Module):
    def __init__(self, config: TextEncoderConfig, group: Group) -> None:
        super().__init__()
        whole = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        self.qkv = ColumnParallelLinear(config.hidden_size, whole, group)
        self.norm_q = RMSNorm(config.head_dim, config.norm_eps)
        self.norm_k = RMSNorm(config.head_dim, config.norm_eps)
        self.out = RowParallelLinear(config.num_heads * config.head_dim, config.hidden_size, group)
        self._head_dim = config.head_dim
        self._columns = [part // group.size for part in whole]

    def forward(self, x: torch.Tensor, packing: Packing, rotations: torch.Tensor) -> torch.Tensor:
        """Let each row attend to the rows before it in its prompt: (tokens, width) → (tokens, width)."""
        qkv = self.qkv(x).split(self._columns, dim=-1)
        query, key, value = (part.unflatten(-1, (-1, self._head_dim)) for part in qkv)
        norm_rotate_(query, key, self.norm_q.weight, self.norm_k.weight, self.norm_q.eps, rotations, halves=True)
        return self.out(packed_attention(query, key, value, packing, causal=True))
