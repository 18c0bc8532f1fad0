"""What the VAE's decoder is built of: residual blocks, attention over all pixels, upsampling.

Images are (images, channels, rows, width), channels_last. Every convolution converts its weights to the dtype of its
image. On a GPU its bias and a block's residual are added by the kernel that reads the image next.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from engine.config.components import VAEConfig
from engine.kernels.attention.chunked import chunked_attention
from engine.kernels.image_norm import add_image_norm_, add_residual_, image_norm
from engine.kernels.upsample import upsample
from engine.parallel.row_share import ImageRows

_RESNET_REACH = 2  # how many rows up and down a residual block looks, by its two convolutions


class Decoder(nn.Module):
    """The decoder's network, in the two parts that `VAEDecoder` runs."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * multiplier for multiplier in reversed(config.dim_mult)]
        self.conv_in = Conv(config.z_dim, widths[0], 3)
        self.mid_block = _MidBlock(widths[0])
        self.up_blocks = nn.ModuleList()
        incoming = widths[0]
        for level, outgoing in enumerate(widths):
            is_last = level == len(widths) - 1
            self.up_blocks.append(_UpBlock(incoming, outgoing, config.num_res_blocks + 1, upsample=not is_last))
            incoming = outgoing // 2
        self.norm_out = _ImageNorm(widths[-1], silu=True)
        self.conv_out = Conv(widths[-1], 3, 3)
        self.reach = _RESNET_REACH * (config.num_res_blocks + 1) + 1  # of each up block, in its input's rows

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


class _MidBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_ResidualBlock(width, width), _ResidualBlock(width, width)])
        self.attentions = nn.ModuleList([_Attention(width)])

    def forward(self, x: torch.Tensor, rows: ImageRows, score_bytes: int) -> torch.Tensor:
        """(images, channels, own rows, w) → the same shape."""
        x = rows.around(lambda wide: self.resnets[0](_Image(wide)).finish(), x, _RESNET_REACH)
        x = self.attentions[0](x, rows, score_bytes)
        return rows.around(lambda wide: self.resnets[1](_Image(wide)).finish(), x, _RESNET_REACH)


class _UpBlock(nn.Module):
    def __init__(self, incoming: int, outgoing: int, resnets: int, *, upsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _ResidualBlock(incoming if index == 0 else outgoing, outgoing) for index in range(resnets)
        )
        self.upsamplers = nn.ModuleList([Conv(outgoing, outgoing // 2, 3)] if upsample else [])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(images, incoming, rows, w) → (images, outgoing / 2, 2 · rows, 2w), or without upsampling (images, outgoing,
        rows, w)."""
        x = self.unfinished(x).finish()
        for convolution in self.upsamplers:
            x = convolution(upsample(x))
        return x

    def unfinished(self, x: torch.Tensor) -> _Image:
        """Run the residual blocks: (images, incoming, rows, w) → (images, outgoing, rows, w)."""
        image = _Image(x)
        for resnet in self.resnets:
            image = resnet(image)
        return image


@dataclass
class _Image:
    """An image to which a convolution's bias, (channels,), and a residual, of its shape, are still to be added. The
    kernel that reads it next does that: on a GPU each would else be a pass of its own."""

    values: torch.Tensor
    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None

    def finish(self) -> torch.Tensor:
        """Add the residual, if there is one, and return the image."""
        if self.residual is not None:
            add_residual_(self.values, self.residual, bias=self.bias)
            self.bias = self.residual = None
        assert self.bias is None, "a bias without a residual is for a norm to add"
        return self.values


class _ResidualBlock(nn.Module):
    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.norm1 = _ImageNorm(incoming, silu=True)
        self.conv1 = Conv(incoming, outgoing, 3)
        self.norm2 = _ImageNorm(outgoing, silu=True)
        self.conv2 = Conv(outgoing, outgoing, 3)
        self.conv_shortcut = Conv(incoming, outgoing, 1) if incoming != outgoing else nn.Identity()

    def forward(self, x: _Image) -> _Image:
        """(images, incoming, rows, w) → (images, outgoing, rows, w), the residual being left to what reads it next."""
        y = self.norm2.of(self.conv1.unfinished(self.norm1.of(x)))
        image = self.conv2.unfinished(y)
        image.residual = self.conv_shortcut(x.finish())
        return image


class _Attention(nn.Module):
    """Attention of one head, as wide as the image has channels, over all pixels, those of other ranks' rows too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _ImageNorm(width, silu=False)
        self.to_qkv = Conv(width, 3 * width, 1)
        self.proj = Conv(width, width, 1)

    def forward(self, x: torch.Tensor, rows: ImageRows, score_bytes: int) -> torch.Tensor:
        """(images, channels, own rows, w) → the same shape."""
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
    """softmax(q kᵀ / sqrt(width)) v of one head, never with all scores at once. query: (images, own pixels, width);
    key, value: (images, all pixels, width). Returns the shape of query."""
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
        """Norm each pixel's channels, and apply SiLU if `silu`: the shape of the image, to which a residual is added
        for good."""
        if image.residual is None:
            return image_norm(image.values, self.weight, silu=self.silu, bias=image.bias)
        normed = add_image_norm_(image.values, image.residual, self.weight, silu=self.silu, bias=image.bias)
        image.bias = image.residual = None
        return normed


class Conv(nn.Module):
    """A 2-D convolution that keeps the image's size: (images, incoming, h, w) → (images, outgoing, h, w)."""

    def __init__(self, incoming: int, outgoing: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outgoing, incoming, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outgoing))

    def forward(self, x: torch.Tensor, *, biased: bool = True) -> torch.Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.conv2d(x, weight, bias if biased else None, padding=weight.shape[-1] // 2)

    def unfinished(self, x: torch.Tensor) -> _Image:
        """Convolve, leaving the bias to what reads the image next where it would be a pass of its own."""
        if _adds_bias_apart(x.device):
            return _Image(self(x, biased=False), self.bias)
        return _Image(self(x))


def _adds_bias_apart(device: torch.device) -> bool:
    """Whether torch adds a convolution's bias after cuDNN has written the image, rather than within."""
    return device.type == "cuda"
