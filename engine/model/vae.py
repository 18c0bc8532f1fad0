"""The decoder of the Qwen-Image VAE, in two dimensions.

At one frame its causal 3-D convolutions see only zeros before the frame, so each equals a 2-D convolution with the
last temporal slice of its kernel: exact, and 2.4 times faster on a CPU. `time_conv`s never run at one frame.

Images are in the weights' dtype, or in `decoding_dtype`, to which every convolution then converts its weights. Weights
are channels_last, and so is every image between the convolutions: a GPU's tensor cores want it, on a CPU it is up to
twice as fast, and a pixel's channels are one row to the norm.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import nn

from engine.config.components import VAEConfig
from engine.device.devices import decoding_dtype
from engine.kernels.upsample import upsample
from engine.model.tiles import MARGIN, OVERLAP, RESNET_REACH, Tiles, divide
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


class VAEDecoder(VAEHalf):
    """The VAE's decoder, from latents to pixels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        self.post_quant_conv = Conv(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    def divides(self, height: int, group: Group) -> bool:
        """Whether a group's ranks can decode an image of this height, in latent pixels, together: each has at least as
        many rows as the convolutions of an up block reach to either side."""
        return min(group.shares(height)) >= self.decoder.reach

    def forward(self, latents: torch.Tensor, *, tile: int | None = None, group: Group | None = None) -> torch.Tensor:
        """Decode (images, z_dim, h, w) → (images, 3, 8h, 8w) in [-1, 1], in `decoding_dtype`, float32 if in tiles.

        group: of ranks that decode together, each its rows, where h `divides`; without `tile`. Gives this rank's rows.
        In float32 they are within 1e-5 of the whole's: sums in another order.

        tile: the longest side, in latent pixels, of tiles that make up the picture, blended where they overlap. The
        middle of the decoder, where every pixel attends to every other, still sees the whole picture: what comes after
        it looks no further than the convolutions reach.
        """
        rows = ImageRows(latents.shape[2], group)
        dtype = decoding_dtype(latents.device, self.post_quant_conv.weight.dtype)
        z = (latents[:, :, rows.own].float() * self._std + self._mean).to(dtype)
        score_bytes = self.score_bytes(z.shape[2], z.shape[3], tile)
        features = self.decoder.middle(self.post_quant_conv(z), rows, score_bytes)
        if tile is None:
            return self.decoder.up(features, rows).clamp(-1.0, 1.0)
        return self._up_in_tiles(features, tile)

    def score_bytes(self, height: int, width: int, tile: int | None) -> int:
        """Bound the bytes that the middle's attention takes for its scores, for an image of this size in latent pixels:
        those of a float32 image (or tile) at the last level. `engine.planning.step_memory` counts these anyway, and
        they are not allocated yet."""
        if tile is not None:
            height, width = divide(height, tile).size, divide(width, tile).size
        return height * width * self.scale_factor**2 * self.decoder.conv_out.weight.shape[1] * 4

    def _up_in_tiles(self, features: torch.Tensor, tile: int) -> torch.Tensor:
        """(images, channels, h, w) → (images, 3, 8h, 8w) float32."""
        height, width = features.shape[2:]
        down, across = divide(height, tile), divide(width, tile)
        scale, device = self.scale_factor, features.device
        picture = torch.zeros((len(features), 3, height * scale, width * scale), device=device)
        tile_rows = zip(down.starts, _tile_weights(down, height, scale, device), strict=True)
        tile_columns = zip(across.starts, _tile_weights(across, width, scale, device), strict=True)
        for (top, weights_down), (left, weights_across) in product(tile_rows, tile_columns):
            part = features[..., top : top + down.size, left : left + across.size]
            part = part.contiguous(memory_format=torch.channels_last)
            pixels = self.decoder.up(part, ImageRows(down.size)).clamp(-1.0, 1.0)
            target = picture[..., top * scale :, left * scale :][..., : pixels.shape[2], : pixels.shape[3]]
            target.add_(pixels.float() * weights_across * weights_down[:, None])
        return picture

    def decode_pixels(
        self, latents: torch.Tensor, *, tile: int | None = None, group: Group | None = None
    ) -> torch.Tensor:
        """Decode as `forward`, but to (images, 8h, 8w, 3) uint8, rounded as diffusers does, and whole on each rank."""
        pixels = self(latents, tile=tile, group=group).float() / 2 + 0.5
        pixels = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        rows = ImageRows(latents.shape[2], group)
        return rows.gather(pixels.transpose(0, 1), self.scale_factor).transpose(0, 1).contiguous()

    def warm_up(self, latents: torch.Tensor, *, tile: int | None = None, group: Group | None = None) -> None:
        """Decode latents of this shape as `timed_convolutions`, in the thread that decodes."""
        with timed_convolutions():
            self.decode_pixels(latents, tile=tile, group=group)


class Decoder(nn.Module):
    """The decoder's network, in the two parts that `VAEDecoder` runs."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * multiplier for multiplier in reversed(config.dim_mult)]
        self.conv_in = Conv(config.z_dim, widths[0], 3)
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = nn.ModuleList()
        incoming = widths[0]
        for level, outgoing in enumerate(widths):
            is_last = level == len(widths) - 1
            self.up_blocks.append(_UpBlock(incoming, outgoing, config.num_res_blocks + 1, upsample=not is_last))
            incoming = outgoing // 2
        self.norm_out = ImageNorm(widths[-1], silu=True)
        self.conv_out = Conv(widths[-1], 3, 3)
        self.reach = RESNET_REACH * (config.num_res_blocks + 1) + 1  # of each up block, in its input's rows

    def middle(self, x: torch.Tensor, rows: ImageRows, score_bytes: int) -> torch.Tensor:
        """Run the layers in which each pixel depends on all: (images, z_dim, own rows, w) → (images, channels, own
        rows, w). score_bytes: what the attention may take at one time for scores."""
        return self.mid_block(rows.around(self.conv_in, x, 1), rows, score_bytes)

    def up(self, x: torch.Tensor, rows: ImageRows) -> torch.Tensor:
        """Upsample what `middle` gave, or a part of it: (images, channels, own rows, w) → (images, 3, 8 · own rows,
        8w)."""
        *blocks, last = self.up_blocks
        assert isinstance(last, _UpBlock)
        for block in blocks:  # the upsampled rows' reach of 1 is half a row
            x = rows.around(block, x, self.reach, scale=2)
        return rows.around(lambda wide: self.conv_out(self.norm_out.of(last.unfinished(wide))), x, self.reach)


class _UpBlock(nn.Module):
    def __init__(self, incoming: int, outgoing: int, resnets: int, *, upsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(incoming if index == 0 else outgoing, outgoing) for index in range(resnets)
        )
        self.upsamplers = nn.ModuleList([Conv(outgoing, outgoing // 2, 3)] if upsample else [])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(images, incoming, rows, w) → (images, outgoing / 2, 2 · rows, 2w), or without upsampling (images, outgoing,
        rows, w)."""
        x = self.unfinished(x).finish()
        for convolution in self.upsamplers:
            x = convolution(upsample(x))
        return x

    def unfinished(self, x: torch.Tensor) -> Image:
        """Run the residual blocks: (images, incoming, rows, w) → (images, outgoing, rows, w)."""
        image = Image(x)
        for resnet in self.resnets:
            image = resnet(image)
        return image


def _tile_weights(tiles: Tiles, length: int, scale: int, device: torch.device) -> torch.Tensor:
    """Weigh the tiles along a side: (tiles, size · scale) float32, which add up to 1 at each of the length · scale
    pixels. Where two overlap, the weight of one falls in a line while that of the other rises; near a cut a tile has
    none, since there it lacks what it should have seen."""
    size = tiles.size * scale
    positions = (torch.arange(size, device=device) + 0.5) / scale
    rise = ((positions - MARGIN) / (OVERLAP - 2 * MARGIN)).clamp(0.0, 1.0)
    weights = torch.ones((len(tiles.starts), size), device=device)
    weights[1:] *= rise
    weights[:-1] *= rise.flip(0)
    total = torch.zeros(length * scale, device=device)
    places = [slice(start * scale, start * scale + size) for start in tiles.starts]
    for place, weight in zip(places, weights, strict=True):
        total[place] += weight
    return torch.stack([weight / total[place] for place, weight in zip(places, weights, strict=True)])
