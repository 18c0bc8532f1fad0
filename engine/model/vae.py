"""The decoder of the Qwen-Image VAE, in two dimensions.

At one frame its causal 3-D convolutions see only zeros before the frame, so each equals a 2-D convolution with the
last temporal slice of its kernel: exact, and 2.4 times faster on a CPU. `time_conv`s never run at one frame.

Images are of the weights' dtype, or of `decoding_dtype`, to which every convolution converts its weights then.

Weights are channels_last, and so is every image between the convolutions: a GPU's tensor cores want it, on a CPU it is
up to twice as fast, and a pixel's channels are one row to the norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from engine.config.components import VAEConfig
from engine.device.devices import decoding_dtype
from engine.kernels.attention.chunked import chunked_attention
from engine.kernels.image_norm import add_image_norm_, add_residual_, image_norm
from engine.kernels.upsample import upsample
from engine.model.tiles import MARGIN, OVERLAP, Tiles, divide
from engine.parallel.group import Group, LocalGroup
from engine.parallel.image_rows import ImageRows

_RESNET_REACH = 2  # rows up and down that a residual block looks: its two convolutions


class VAEDecoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.scale_factor = config.scale_factor
        self._latents_mean, self._latents_std = config.latents_mean, config.latents_std
        self.post_quant_conv = _Conv(config.z_dim, config.z_dim, 1)
        self.decoder = _Decoder(config)
        self._mean: torch.Tensor
        self._std: torch.Tensor
        self.register_buffer("_mean", None, persistent=False)
        self.register_buffer("_std", None, persistent=False)
        self.register_load_state_dict_post_hook(VAEDecoder._follow_weights)

    def divides(self, height: int, group: Group) -> bool:
        """Whether the ranks of a group can decode images together that are so many latent pixels high."""
        return ImageRows.divide(height, group, self.decoder.reach)

    def forward(self, latents: torch.Tensor, *, tile: int | None = None, group: Group | None = None) -> torch.Tensor:
        """latents: (images, z_dim, h, w) as the sampler leaves them. Returns (images, 3, 8h, 8w) in [-1, 1].

        group: of ranks that decode together, each its rows, where h `divides`; the result is this rank's rows. In
        float32 they are within 1e-5 of the whole's: sums in another order.

        tile: make the picture of tiles whose sides are no longer than so many latent pixels, blended where they
        overlap. The middle of the decoder, where every pixel attends to every other, still sees the whole picture:
        what comes after it looks no further than the convolutions reach.
        """
        rows = ImageRows(latents.shape[2], group or LocalGroup())
        dtype = decoding_dtype(latents.device, self.post_quant_conv.weight.dtype)
        z = (latents[:, :, rows.own].float() * self._std + self._mean).to(dtype)
        score_bytes = self.score_bytes(z.shape[2], z.shape[3], tile)
        features = self.decoder.middle(self.post_quant_conv(z), rows, score_bytes)
        if tile is None:
            return self.decoder.up(features, rows).clamp(-1.0, 1.0)
        return self._up_in_tiles(features, tile)

    def score_bytes(self, height: int, width: int, tile: int | None) -> int:
        """What the middle's attention may take for its scores where this many latent pixels are decoded, whole or in
        tiles: as much as a float32 image of the last level, which `engine.planning.step_memory` counts, and which
        nobody has yet."""
        if tile is not None:
            height, width = divide(height, tile).size, divide(width, tile).size
        return height * width * self.scale_factor**2 * self.decoder.conv_out.weight.shape[1] * 4

    def _up_in_tiles(self, features: torch.Tensor, tile: int) -> torch.Tensor:
        height, width = features.shape[2:]
        down, across = divide(height, tile), divide(width, tile)
        scale = self.scale_factor
        picture = torch.zeros((len(features), 3, height * scale, width * scale), device=features.device)
        for top, share_down in zip(down.starts, _shares(down, height, scale, features.device), strict=True):
            for left, share_across in zip(across.starts, _shares(across, width, scale, features.device), strict=True):
                part = features[..., top : top + down.size, left : left + across.size]
                part = part.contiguous(memory_format=torch.channels_last)
                pixels = self.decoder.up(part, ImageRows.whole(down.size)).clamp(-1.0, 1.0)
                target = picture[..., top * scale :, left * scale :][..., : pixels.shape[2], : pixels.shape[3]]
                target.add_(pixels.float() * share_across * share_down[:, None])
        return picture

    def decode_pixels(
        self, latents: torch.Tensor, *, tile: int | None = None, group: Group | None = None
    ) -> torch.Tensor:
        """As `forward`, but (images, 8h, 8w, 3) uint8, rounded as diffusers does, and whole on each rank."""
        pixels = self(latents, tile=tile, group=group).float() / 2 + 0.5
        pixels = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        rows = ImageRows(latents.shape[2], group or LocalGroup())
        return rows.gather(pixels.transpose(0, 1), self.scale_factor).transpose(0, 1).contiguous()

    def warm_up(self, latents: torch.Tensor, *, tile: int | None = None, group: Group | None = None) -> None:
        """Decode latents of this shape, letting cuDNN time its ways to compute each convolution and keep the fastest.

        Call it in the thread that decodes, since cuDNN's choices belong to a thread. Shapes that were not warmed up
        get what cuDNN's heuristics say: timing them would hold up the requests that wait, and it empties torch's cache
        of device memory for every convolution. The flag is the process's, but only convolutions look at it, and only
        the decoder has any. torch times at most `torch.backends.cudnn.benchmark_limit` ways of each, 10 if nobody says
        otherwise, the ones first that the heuristics think best.
        """
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            self.decode_pixels(latents, tile=tile, group=group)
        finally:
            torch.backends.cudnn.benchmark = before

    def _follow_weights(self, _: object) -> None:
        """Lay the weights that were just loaded out for decoding, and put what else it needs on their device."""
        device = self.post_quant_conv.weight.device
        self._mean = torch.tensor(self._latents_mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(self._latents_std, device=device).view(-1, 1, 1)
        for parameter in self.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)


def _shares(tiles: Tiles, length: int, scale: int, device: torch.device) -> torch.Tensor:
    """What each tile gives to the pixels of its place along a side: (tiles, size · scale) float32, 1 in all at each
    pixel. Where two overlap, the share of one falls in a line while that of the other rises; near a cut a tile has
    none, since there it lacks what it should have seen."""
    size = tiles.size * scale
    positions = (torch.arange(size, device=device) + 0.5) / scale
    rise = ((positions - MARGIN) / (OVERLAP - 2 * MARGIN)).clamp(0.0, 1.0)
    shares = torch.ones((len(tiles.starts), size), device=device)
    shares[1:] *= rise
    shares[:-1] *= rise.flip(0)
    total = torch.zeros(length * scale, device=device)
    places = [slice(start * scale, start * scale + size) for start in tiles.starts]
    for place, share in zip(places, shares, strict=True):
        total[place] += share
    for place, share in zip(places, shares, strict=True):
        share /= total[place]
    return shares


class _Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * multiplier for multiplier in reversed(config.dim_mult)]
        self.conv_in = _Conv(config.z_dim, widths[0], 3)
        self.mid_block = _MidBlock(widths[0])
        self.up_blocks = nn.ModuleList()
        incoming = widths[0]
        for level, outgoing in enumerate(widths):
            is_last = level == len(widths) - 1
            self.up_blocks.append(_UpBlock(incoming, outgoing, config.num_res_blocks + 1, upsample=not is_last))
            incoming = outgoing // 2
        self.norm_out = _ImageNorm(widths[-1], silu=True)
        self.conv_out = _Conv(widths[-1], 3, 3)
        self.reach = _RESNET_REACH * (config.num_res_blocks + 1) + 1  # of each up block, in its input's rows

    def middle(self, x: torch.Tensor, rows: ImageRows, score_bytes: int) -> torch.Tensor:
        """(images, z_dim, own rows, w) → (images, channels, own rows, w), each pixel of which depends on all.
        score_bytes: as the attention may take at one time for scores."""
        return self.mid_block(rows.around(self.conv_in, x, 1), rows, score_bytes)

    def up(self, x: torch.Tensor, rows: ImageRows) -> torch.Tensor:
        """What `middle` gave, or a part of it → (images, 3, 8 · own rows, 8w)."""
        *blocks, last = self.up_blocks
        assert isinstance(last, _UpBlock)
        for block in blocks:  # the upsampled rows' reach of 1 is half a row
            x = rows.around(block, x, self.reach, scale=2)
        return rows.around(lambda wide: self.conv_out(self.norm_out.of(last.unfinished(wide))), x, self.reach)


class _MidBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_ResidualBlock(width, width), _ResidualBlock(width, width)])
        self.attentions = nn.ModuleList([_Attention(width)])

    def forward(self, x: torch.Tensor, rows: ImageRows, score_bytes: int) -> torch.Tensor:
        x = rows.around(self.resnets[0], x, _RESNET_REACH)
        return rows.around(self.resnets[1], self.attentions[0](x, rows, score_bytes), _RESNET_REACH)


class _UpBlock(nn.Module):
    def __init__(self, incoming: int, outgoing: int, resnets: int, *, upsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _ResidualBlock(incoming if index == 0 else outgoing, outgoing) for index in range(resnets)
        )
        self.upsamplers = nn.ModuleList([_Conv(outgoing, outgoing // 2, 3)] if upsample else [])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.unfinished(x).finish()
        for convolution in self.upsamplers:
            x = convolution(upsample(x))
        return x

    def unfinished(self, x: torch.Tensor) -> _Image:
        """What the residual blocks make of x."""
        image = _Image(x)
        for resnet in self.resnets:
            assert isinstance(resnet, _ResidualBlock)
            image = resnet.unfinished(image)
        return image


@dataclass
class _Image:
    """An image to which a convolution's bias and a residual, an image like it, are still to be added. The kernel that
    reads it next does that: on a GPU each would else be a pass of its own."""

    values: torch.Tensor
    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None

    def finish(self) -> torch.Tensor:
        """The image with its residual, if it has one."""
        if self.residual is not None:
            add_residual_(self.values, self.residual, bias=self.bias)
            self.bias = self.residual = None
        assert self.bias is None, "a bias without a residual is for a norm to add"
        return self.values


class _ResidualBlock(nn.Module):
    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.norm1 = _ImageNorm(incoming, silu=True)
        self.conv1 = _Conv(incoming, outgoing, 3)
        self.norm2 = _ImageNorm(outgoing, silu=True)
        self.conv2 = _Conv(outgoing, outgoing, 3)
        self.conv_shortcut = _Conv(incoming, outgoing, 1) if incoming != outgoing else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unfinished(_Image(x)).finish()

    def unfinished(self, x: _Image) -> _Image:
        """As `forward`, but what is to be added at the end is left to whoever goes on with it."""
        y = self.norm2.of(self.conv1.unfinished(self.norm1.of(x)))
        image = self.conv2.unfinished(y)
        image.residual = self.conv_shortcut(x.finish())
        return image


class _Attention(nn.Module):
    """One head as wide as the image has channels, over all pixels: those of other ranks' rows too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _ImageNorm(width, silu=False)
        self.to_qkv = _Conv(width, 3 * width, 1)
        self.proj = _Conv(width, width, 1)

    def forward(self, x: torch.Tensor, rows: ImageRows, score_bytes: int) -> torch.Tensor:
        size = x.shape[2:]
        qkv = self.to_qkv(self.norm(x)).permute(0, 2, 3, 1).flatten(1, 2)
        query, keys_values = qkv.contiguous().split([x.shape[1], 2 * x.shape[1]], dim=-1)
        if rows.group.size > 1:
            keys_values = rows.gather(keys_values.transpose(0, 1), size[1]).transpose(0, 1)
        key, value = keys_values.chunk(2, dim=-1)
        attended = _attend(query, key, value, score_bytes)
        image = self.proj.unfinished(attended.unflatten(1, size).permute(0, 3, 1, 2))
        image.residual = x
        return image.finish()


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, score_bytes: int) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(width)) v of one head, (images, pixels, width), without all the scores at once."""
    if query.is_cuda:  # where the head is too wide for flash and cuDNN, and torch's third kernel is slow
        return chunked_attention(query, key, value, score_bytes)
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]


class _ImageNorm(nn.Module):
    def __init__(self, channels: int, *, silu: bool) -> None:
        super().__init__()
        self.silu = silu
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.of(_Image(x))

    def of(self, image: _Image) -> torch.Tensor:
        """Of the whole image. A residual is added to it for good."""
        if image.residual is None:
            return image_norm(image.values, self.weight, silu=self.silu, bias=image.bias)
        normed = add_image_norm_(image.values, image.residual, self.weight, silu=self.silu, bias=image.bias)
        image.bias = image.residual = None
        return normed


class _Conv(nn.Module):
    """A 2-D convolution that keeps the image's size."""

    def __init__(self, incoming: int, outgoing: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outgoing, incoming, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outgoing))

    def forward(self, x: torch.Tensor, *, biased: bool = True) -> torch.Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.conv2d(x, weight, bias if biased else None, padding=weight.shape[-1] // 2)

    def unfinished(self, x: torch.Tensor) -> _Image:
        """As `forward`, but without the bias where that is a pass of its own."""
        if _adds_bias_apart(x.device):
            return _Image(self(x, biased=False), self.bias)
        return _Image(self(x))


def _adds_bias_apart(device: torch.device) -> bool:
    """Whether torch adds a convolution's bias once cuDNN has written the image, rather than within."""
    return device.type == "cuda"
