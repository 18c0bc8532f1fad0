"""The diffusion transformer on a packed batch: one denoise step for images of any sizes and timesteps at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from engine.config.components import TransformerConfig
from engine.kernels.attention.backends import GatedAttentionKernel
from engine.kernels.fp8 import Fp8Rows
from engine.kernels.norm import add_rms_norm_modulate_, rms_norm_modulate
from engine.kernels.packing import Packing
from engine.model.batch import Layout
from engine.model.layers import GatedAttention, RMSNorm, SideVector, SwiGLU, Visit, visit_in_place
from engine.model.text_fusion import TextFusion
from engine.parallel.group import Group
from engine.parallel.linear import Linear
from engine.parallel.row_share import RowShare


@dataclass(frozen=True)
class TimeModulation:
    """Timesteps as the blocks and the final layer take them, float32: one row for each step of a schedule, or segment.

    block: (rows, 6 · width), shared by all blocks, each of which adds its own table. final: (rows, width).
    """

    block: torch.Tensor
    final: torch.Tensor

    def of(self, rows: Sequence[int]) -> TimeModulation:
        """Pick rows, without waiting for the device."""
        return TimeModulation(torch.stack([self.block[i] for i in rows]), torch.stack([self.final[i] for i in rows]))


@dataclass
class BlockRows:
    """A rank's rows of a packed batch between two blocks. Running blocks changes `x` in place, `y` and `vectors`.

    x: (own rows, width), what the blocks so far made. y: of the same shape, x normed and modulated for what comes next,
    whose `vectors` are (segments, rows, width) float32.
    """

    x: torch.Tensor
    y: torch.Tensor | Fp8Rows
    vectors: torch.Tensor
    modulation: TimeModulation
    share: RowShare
    rotations: torch.Tensor


class Transformer(nn.Module):
    """Krea 2's single-stream diffusion transformer with its text fusion."""

    def __init__(
        self,
        config: TransformerConfig,
        group: Group,
        attention: GatedAttentionKernel,
        text_attention: GatedAttentionKernel,
    ) -> None:
        """group: over whose ranks matrices are split. attention: of the blocks; text_attention: of text fusion, whose
        sequences are shorter."""
        super().__init__()
        self.img_in = Linear(config.in_channels, config.hidden_size)
        self.time_embed = _TimeEmbedding(config)
        self.time_mod_proj = Linear(config.hidden_size, 6 * config.hidden_size)
        self.text_fusion = TextFusion(config, group, text_attention)
        self.txt_in = _TextProjection(config)
        self.transformer_blocks = nn.ModuleList(_Block(config, group, attention) for _ in range(config.num_layers))
        self.final_layer = _FinalLayer(config)
        self.visit: Visit = visit_in_place  # the blocks of a step, in order, each on the device while it is used

    @property
    def attends_to_fp8(self) -> bool:
        """Whether the blocks' attention hands its result on as fp8 rows."""
        return cast(_Block, self.transformer_blocks[0]).attn.out.takes_fp8

    @property
    def multiplies_fp8(self) -> bool:
        """Whether any of the blocks' matrices is multiplied in fp8."""
        return any(getattr(module, "takes_fp8", False) for module in self.transformer_blocks.modules())

    def encode_text(self, states: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Turn tapped hidden states of packed prompts, (tokens, layers, text width), into text features, (tokens,
        width), all in the model's dtype. They do not depend on the timestep: once per prompt."""
        return self.txt_in(self.text_fusion(states, packing))

    def encode_timesteps(self, timesteps: torch.Tensor) -> TimeModulation:
        """Encode timesteps, (steps,) float32 in [0, 1], to a row each: once per schedule."""
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
        """Compute the velocities of a packed batch, one denoise step: (image tokens of all segments, in_channels)
        float32, segment after segment.

        text: each segment's, from `encode_text`, (text tokens, width). latents: each image's tokens, (image tokens,
        in_channels) float32, image i being the one that segments call `image` i. modulation: a row per segment.
        denoise: stands in for the method of that name, as a CUDA graph of it does.
        """
        x = layout.share.take_own(self.embed(text, latents, layout))
        velocities = (denoise or self.denoise)(x, modulation, layout.share, layout.rotations)
        return layout.take_images(layout.share.gather_whole(velocities))

    def embed(self, text: list[torch.Tensor], latents: list[torch.Tensor], layout: Layout) -> torch.Tensor:
        """Embed image tokens and pack them behind their text features: (tokens, width). Arguments as in `forward`."""
        return layout.pack(text, self.img_in(torch.cat(latents).to(self.img_in.weight.dtype)))

    def denoise(
        self, x: torch.Tensor, modulation: TimeModulation, share: RowShare, rotations: torch.Tensor
    ) -> torch.Tensor:
        """Run the blocks and the final layer: the velocity of each own row, (own rows, in_channels) float32, which
        means nothing for text rows.

        x: (own rows, width), overwritten. rotations: (multiplied rows, head_dim / 2) complex64. Where ranks split the
        matrices, each one adds residuals, norms and modulates for its own rows alone. They are gathered before a
        matrix, and its outputs are summed for each rank's own rows. Every residual is added by the norm after it, the
        last one by the final layer's. Of `share` it reads only what a packing captured in a CUDA graph has.
        """
        rows = self.enter(0, x, modulation, share, rotations)
        self.run_blocks(rows, range(len(self.transformer_blocks)))
        return self.finish(rows)

    def enter(
        self, index: int, x: torch.Tensor, modulation: TimeModulation, share: RowShare, rotations: torch.Tensor
    ) -> BlockRows:
        """Norm and modulate rows for the block of this index, or for the final layer after the last. Arguments as in
        `denoise`."""
        follower = self._parts[index]
        vectors = follower.modulate(modulation)
        eps, fp8 = self.final_layer.norm.eps, follower.takes_fp8
        y = rms_norm_modulate(x, vectors[:, 0], vectors[:, 1], eps, share.own, fp8=fp8)
        return BlockRows(x, y, vectors, modulation, share, rotations)

    def run_blocks(self, rows: BlockRows, part: range, ahead: int | None = None) -> None:
        """Run the blocks of `part` on rows that are ready for the first of them, which makes them ready for what
        follows. ahead: as in `Visit`."""
        eps, share, x = self.final_layer.norm.eps, rows.share, rows.x
        followers = self._parts[part.start + 1 : part.stop + 1]
        for block, follower in zip(self.visit(self._blocks, part, ahead), followers, strict=True):
            _, _, gate, factor, shift, last_gate = rows.vectors.unbind(1)
            update = block.attn(share.gather(rows.y), share, rows.rotations)
            takes_fp8 = block.ff.gate_up.takes_fp8
            rows.y = add_rms_norm_modulate_(x, update, gate, factor, shift, eps, share.own, fp8=takes_fp8)
            update = block.ff(share.gather(rows.y), share)
            rows.vectors = follower.modulate(rows.modulation)
            factor, shift = rows.vectors[:, 0], rows.vectors[:, 1]
            rows.y = add_rms_norm_modulate_(x, update, last_gate, factor, shift, eps, share.own, fp8=follower.takes_fp8)

    def finish(self, rows: BlockRows) -> torch.Tensor:
        """Run the final layer on rows that are ready for it: as `denoise`."""
        return self.final_layer.linear(rows.y).float()

    @property
    def _blocks(self) -> list[_Block]:
        return cast(list[_Block], list(self.transformer_blocks))

    @property
    def _parts(self) -> list[_Block | _FinalLayer]:
        return [*self._blocks, self.final_layer]


class _Modulated(nn.Module, ABC):
    """What a table modulates, (rows, width): its rows are added to those of a timestep, and norms scale before some."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(rows, width))
        self.side_vector: SideVector | None = None

    @abstractmethod
    def _norms(self) -> dict[int, RMSNorm]:
        """The norms, by the row that scales after each."""

    def _modulate(self, time: torch.Tensor) -> torch.Tensor:
        """Add the table to a timestep's rows, (segments, rows or 1, width), and fold the norms' weights in: (segments,
        rows, width) float32. A row after a norm becomes weight · (1 + row)."""
        norms = self._norms()
        table = None if self.side_vector is None else self.side_vector()
        weights = [norm.weight_in_force for norm in norms.values()]
        if table is None and all(weight is norm.weight for weight, norm in zip(weights, norms.values(), strict=True)):
            return torch.addcmul(*self._folded, time)
        vectors = time + (self.scale_shift_table if table is None else table)
        for row, weight in zip(norms, weights, strict=True):
            vectors[:, row] = torch.addcmul(weight, weight, vectors[:, row])
        return vectors

    @cached_property
    def _folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Offset and slope, (rows, width) both: offset + slope · v is what becomes of a timestep's rows v."""
        offset, slope = self.scale_shift_table.clone(), torch.ones_like(self.scale_shift_table)
        for row, norm in self._norms().items():
            offset[row] = norm.weight * (1 + self.scale_shift_table[row])
            slope[row] = norm.weight
        return offset, slope


class _Block(_Modulated):
    """The parts of a block; `Transformer.denoise` puts them together, since it fuses what lies between blocks."""

    def __init__(self, config: TransformerConfig, group: Group, attention: GatedAttentionKernel) -> None:
        width, eps = config.hidden_size, config.norm_eps
        super().__init__(6, width)
        self.norm1 = RMSNorm(width, eps)
        self.attn = GatedAttention(width, config.num_heads, config.num_kv_heads, config.head_dim, eps, group, attention)
        self.norm2 = RMSNorm(width, eps)
        self.ff = SwiGLU(width, config.intermediate_size, group)

    @property
    def takes_fp8(self) -> bool:
        """Whether the block's input should come as fp8 rows."""
        return self.attn.qkvg.takes_fp8

    def modulate(self, modulation: TimeModulation) -> torch.Tensor:
        """Give (segments, 6, width) float32: factor and shift for the norm before attention, attention's gate, then the
        same for the feed-forward. A factor is the norm's weight · (1 + scale)."""
        return self._modulate(modulation.block.unflatten(-1, (6, -1)))

    def _norms(self) -> dict[int, RMSNorm]:
        return {0: self.norm1, 3: self.norm2}


class _FinalLayer(_Modulated):
    takes_fp8 = False

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(2, config.hidden_size)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.linear = Linear(config.hidden_size, config.in_channels)

    def modulate(self, modulation: TimeModulation) -> torch.Tensor:
        """Give (segments, 2, width) float32: factor and shift for the norm."""
        return self._modulate(modulation.final[:, None])

    def _norms(self) -> dict[int, RMSNorm]:
        return {0: self.norm}


class _TimeEmbedding(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_dim = config.timestep_embed_dim
        self.linear_1 = Linear(config.timestep_embed_dim, config.hidden_size)
        self.linear_2 = Linear(config.hidden_size, config.hidden_size)

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Sinusoid of 1000 · t, cosines first, base 10,000 → Linear → GELU(tanh) → Linear: (steps,) float32 →
        (steps, width)."""
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
        """Project (tokens, text width) → (tokens, width)."""
        return self.linear_2(F.gelu(self.linear_1(self.norm(x)), approximate="tanh"))
