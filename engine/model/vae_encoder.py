"""The encoder of the Qwen-Image VAE, in two dimensions as the decoder is (`engine.model.vae`).

Its way down, nearly all of its work, is convolutions alone, which look `Encoder.reach` latent pixels far: tiles of a
picture, or the rows of a rank, are computed with as much of the picture around them, and are then what the whole gives.
Its middle, where every pixel attends to every other, sees the whole.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from engine.config.components import VAEConfig
from engine.device.devices import decoding_dtype
from engine.model.tiles import Part, divide_exactly, encoder_reach
from engine.model.vae_blocks import (
    Conv,
    Image,
    ImageNorm,
    MidBlock,
    ResidualBlock,
    VAEHalf,
    timed_convolutions,
)
from engine.parallel.group import Group
from engine.parallel.row_share import ImageRows


class VAEEncoder(VAEHalf):
    """The VAE's encoder, from pixels to latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quant_conv = Conv(2 * config.z_dim, 2 * config.z_dim, 1)

    def divides(self, height: int, group: Group) -> bool:
        """Whether a group's ranks can encode a picture of this height, in latent pixels, together: each has at least as
        many rows as it computes besides to either side, without which it would have no less to do than alone."""
        return min(group.shares(height)) >= self.encoder.reach

    def forward(self, pixels: torch.Tensor, *, tile: int | None = None, group: Group | None = None) -> torch.Tensor:
        """Encode (images, 3, h, w) in [-1, 1] → (images, z_dim, h/8, w/8) float32: the means of the latents, of mean 0
        and deviation 1 as the transformer takes them. 8 divides h and w.

        group: of ranks that encode together, each its rows, where h/8 `divides`. Every rank has all pixels and gets
        all latents. tile: the longest side, in latent pixels, of what is computed at a time on the way down. In float32
        tiles and ranks are within 1e-5 of the whole: sums in another order.
        """
        height, width = (length // self.scale_factor for length in pixels.shape[2:])
        rows = ImageRows(height, group)
        sides = (rows.own, height), (slice(0, width), width)
        down, across = (divide_exactly(own, length, self.encoder.reach, tile) for own, length in sides)
        features = self._down(pixels, down, across)
        score_bytes = self.score_bytes(_longest(down), _longest(across))
        mean, _ = self.quant_conv(self.encoder.middle(features, rows, score_bytes)).float().chunk(2, dim=1)
        latents = (mean - self._mean) / self._std
        return rows.gather(latents.permute(2, 0, 1, 3), 1).permute(1, 2, 0, 3).contiguous()

    def score_bytes(self, height: int, width: int) -> int:
        """Bound the bytes that the middle's attention takes for its scores, by the largest part that was computed at a
        time, in latent pixels: those of its float32 image at the first level, which are free by then."""
        return height * width * self.scale_factor**2 * self.encoder.conv_in.weight.shape[0] * 4

    def warm_up(self, pixels: torch.Tensor, *, tile: int | None = None, group: Group | None = None) -> None:
        """Encode pixels of this shape as `timed_convolutions`, in the thread that encodes."""
        with timed_convolutions():
            self(pixels, tile=tile, group=group)

    def _down(self, pixels: torch.Tensor, down: list[Part], across: list[Part]) -> torch.Tensor:
        """Compute the parts of a picture, each of some rows and columns in latent pixels: (images, 3, 8h, 8w) →
        (images, channels, kept rows, kept columns)."""
        dtype, scale = decoding_dtype(pixels.device, self.quant_conv.weight.dtype), self.scale_factor
        height, width = (parts[-1].kept.stop - parts[0].kept.start for parts in (down, across))
        features: torch.Tensor | None = None
        for rows, columns in product(down, across):
            part = pixels[:, :, _scaled(rows.seen, scale), _scaled(columns.seen, scale)].to(dtype)
            kept = self.encoder.down(part.contiguous(memory_format=torch.channels_last))
            kept = kept[:, :, _within(rows), _within(columns)]
            if len(down) == len(across) == 1:
                return kept.contiguous(memory_format=torch.channels_last)
            if features is None:
                shape = len(kept), kept.shape[1], height, width
                features = torch.empty(shape, dtype=dtype, device=kept.device, memory_format=torch.channels_last)
            top, left = rows.kept.start - down[0].kept.start, columns.kept.start
            features[:, :, top : top + kept.shape[2], left : left + kept.shape[3]] = kept
        assert features is not None
        return features


def _longest(parts: list[Part]) -> int:
    return max(part.seen.stop - part.seen.start for part in parts)


def _scaled(length: slice, scale: int) -> slice:
    return slice(length.start * scale, length.stop * scale)


def _within(part: Part) -> slice:
    """What is kept, counted from where it is seen."""
    return slice(part.kept.start - part.seen.start, part.kept.stop - part.seen.start)


class Encoder(nn.Module):
    """The encoder's network, in the two parts that `VAEEncoder` runs. reach: as `encoder_reach` has it."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * multiplier for multiplier in config.dim_mult]
        self.conv_in = Conv(3, config.base_dim, 3)
        self.down_blocks = nn.ModuleList()  # of all levels, one behind the other
        incoming = config.base_dim
        for level, outgoing in enumerate(widths):
            for block in range(config.num_res_blocks):
                self.down_blocks.append(ResidualBlock(incoming if block == 0 else outgoing, outgoing))
            incoming = outgoing
            if level < len(widths) - 1:
                self.down_blocks.append(_Downsample(outgoing, outgoing, 3))
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = ImageNorm(widths[-1], silu=True)
        self.conv_out = Conv(widths[-1], 2 * config.z_dim, 3)
        self.reach = encoder_reach(config)

    def down(self, x: torch.Tensor) -> torch.Tensor:
        """Run the layers in which a pixel depends on its surroundings alone: (images, 3, 8h, 8w) → (images, channels,
        h, w)."""
        image = Image(self.conv_in(x))
        for block in self.down_blocks:
            image = Image(block(image.finish())) if isinstance(block, _Downsample) else block(image)
        return image.finish()

    def middle(self, x: torch.Tensor, rows: ImageRows, score_bytes: int) -> torch.Tensor:
        """Run the others: (images, channels, own rows, w) → (images, 2 · z_dim, own rows, w). score_bytes: what the
        attention may take at one time for scores."""
        x = self.mid_block(x, rows, score_bytes)
        return rows.around(lambda wide: self.conv_out(self.norm_out(wide)), x, 1)


class _Downsample(Conv):
    """Halves an image: (images, channels, h, w) → (images, channels, h/2, w/2), each pixel from the 3 × 3 that begin at
    its own two by two."""

    def forward(self, x: torch.Tensor, *, biased: bool = True) -> torch.Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias if biased else None, stride=2)
