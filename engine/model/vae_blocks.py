"""What both halves of the VAE are built of: convolutions, norms, residual blocks, attention over all pixels.

Images are (images, channels, rows, width), channels_last. Every convolution converts its weights to the dtype of its
image. On a GPU its bias and a block's residual are added by the kernel that reads the image next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from engine.config.components import VAEConfig
from engine.kernels.attention.chunked import chunked_attention
from engine.kernels.image_norm import add_image_norm_, add_residual_, image_norm
from engine.model.tiles import RESNET_REACH
from engine.parallel.row_share import ImageRows


class VAEHalf(nn.Module):
    """What the decoder and the encoder have in common. Their weights are channels_last once they are loaded, and the
    latents' mean and deviation, (z_dim, 1, 1), are on their device."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.scale_factor = config.scale_factor
        self._latents_mean, self._latents_std = config.latents_mean, config.latents_std
        self._mean: torch.Tensor
        self._std: torch.Tensor
        self.register_buffer("_mean", None, persistent=False)
        self.register_buffer("_std", None, persistent=False)
        self.register_load_state_dict_post_hook(VAEHalf._follow_weights)

    def _follow_weights(self, _: object) -> None:
        device = next(self.parameters()).device
        self._mean = torch.tensor(self._latents_mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(self._latents_std, device=device).view(-1, 1, 1)
        for parameter in self.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)


@contextmanager
def timed_convolutions() -> Iterator[None]:
    """Let cuDNN time its ways to compute each convolution, and keep the fastest for its shape.

    Use it in the thread that runs the convolutions later, since cuDNN's choices belong to a thread. Shapes that were
    not warmed up so get what cuDNN's heuristics say: timing them would hold up the requests that wait, and it empties
    torch's cache of device memory for every convolution. The flag is the process's, but only convolutions look at it,
    and only the VAE has any. It ends unset, not as it was: another thread that warms up may have set it.
    """
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


class MidBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(width, width), ResidualBlock(width, width)])
        self.attentions = nn.ModuleList([_Attention(width)])

    def forward(self, x: torch.Tensor, rows: ImageRows, score_bytes: int) -> torch.Tensor:
        """(images, channels, own rows, w) → the same shape."""
        x = rows.around(lambda wide: self.resnets[0](Image(wide)).finish(), x, RESNET_REACH)
        x = self.attentions[0](x, rows, score_bytes)
        return rows.around(lambda wide: self.resnets[1](Image(wide)).finish(), x, RESNET_REACH)


@dataclass
class Image:
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


class ResidualBlock(nn.Module):
    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.norm1 = ImageNorm(incoming, silu=True)
        self.conv1 = Conv(incoming, outgoing, 3)
        self.norm2 = ImageNorm(outgoing, silu=True)
        self.conv2 = Conv(outgoing, outgoing, 3)
        self.conv_shortcut = Conv(incoming, outgoing, 1) if incoming != outgoing else nn.Identity()

    def forward(self, x: Image) -> Image:
        """(images, incoming, rows, w) → (images, outgoing, rows, w), the residual being left to what reads it next."""
        y = self.norm2.of(self.conv1.unfinished(self.norm1.of(x)))
        image = self.conv2.unfinished(y)
        image.residual = self.conv_shortcut(x.finish())
        return image


class _Attention(nn.Module):
    """Attention of one head, as wide as the image has channels, over all pixels, those of other ranks' rows too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ImageNorm(width, silu=False)
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


class ImageNorm(nn.Module):
    def __init__(self, channels: int, *, silu: bool) -> None:
        super().__init__()
        self.silu = silu
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.of(Image(x))

    def of(self, image: Image) -> torch.Tensor:
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

    def unfinished(self, x: torch.Tensor) -> Image:
        """Convolve, leaving the bias to what reads the image next where it would be a pass of its own."""
        if _adds_bias_apart(x.device):
            return Image(self(x, biased=False), self.bias)
        return Image(self(x))


def _adds_bias_apart(device: torch.device) -> bool:
    """Whether torch adds a convolution's bias after cuDNN has written the image, rather than within."""
    return device.type == "cuda"
