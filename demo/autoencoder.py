"""Train the demo's VAE: diffusers' AutoencoderKLQwenImage on crops of busy pictures.

The training pictures are not those of the prompts but any shapes in any colours, one over the other: the VAE is to keep
every small corner and every shade, and knows nothing of prompts.

    python -m demo.autoencoder --work WORK --steps 5000

When the transformer is trained, `demo.decoder` goes on with the decoder alone.

Pictures are single frames, of which the causal 3-D convolutions see their last time slice alone: they are computed as
2-D ones while training (2.4 times as fast), and the other slices are zero.
"""

import argparse
import math
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from torch import Tensor, nn

from demo.captions import SHAPES, prompts
from demo.pictures import PALETTE, Placed, draw, paint, pixels
from demo.training import Run, rate

CONFIG = {
    "base_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "z_dim": 16,
    "temperal_downsample": [False, True, True],
    "attn_scales": [],
}
CROPS = ((64, 24), (96, 8))  # (side in pixels, how many in a batch), in turn
LATENT_NOISE = 0.1  # of a channel's standard deviation: decoding forgives this much of the transformer's error
KL_WEIGHT = 1e-5
EDGE_WEIGHT = 0.5
MEASURED = 256  # pictures of prompts whose latents' mean and deviation the config has; a multiple of 16


class StillConv(nn.Module):
    """A causal 3-D convolution of one frame: (batch, channels, 1, height, width)."""

    def __init__(self, conv: QwenImageCausalConv3d) -> None:
        super().__init__()
        self.conv = conv
        with torch.no_grad():
            conv.weight[:, :, :-1] = 0

    def forward(self, x: Tensor, cache_x: None = None) -> Tensor:
        padding = (self.conv._padding[2], self.conv._padding[0])
        y = F.conv2d(x[:, :, 0], self.conv.weight[:, :, -1], self.conv.bias, padding=padding)
        return y[:, :, None]


class Still(nn.Module):
    """The VAE of single frames, its convolutions 2-D; the weights are those of `vae`, which is as it was after
    `restore`."""

    def __init__(self, vae: AutoencoderKLQwenImage) -> None:
        super().__init__()
        self.vae = vae
        for module in list(vae.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, QwenImageCausalConv3d):
                    setattr(module, name, StillConv(child))

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, each (batch, 16, height / 8, width / 8)."""
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(images[:, :, None]))[:, :, 0].chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decoder(self.vae.post_quant_conv(latents[:, :, None]))[:, :, 0]

    def restore(self) -> AutoencoderKLQwenImage:
        for module in list(self.vae.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, StillConv):
                    setattr(module, name, child.conv)
        return self.vae


def busy_picture(side: int, source: random.Random) -> np.ndarray:
    """(3, side, side): some shapes of any sizes and colours over each other, half of the colours near the palette's."""

    def colour() -> tuple[int, int, int]:
        if source.random() < 0.5:
            near = source.choice(list(PALETTE.values()))
            red, green, blue = (min(255, max(0, part + source.randint(-12, 12))) for part in near)
            return red, green, blue
        return source.randrange(256), source.randrange(256), source.randrange(256)

    objects = [
        Placed(
            source.choice(SHAPES),
            source.uniform(0, side),
            source.uniform(0, side),
            math.exp(source.uniform(math.log(10), math.log(80))),
            colour(),
        )
        for _ in range(source.randint(1, 4))
    ]
    objects.sort(key=lambda item: -item.radius)
    return pixels(paint(objects, colour(), side, side, outlined=source.random() < 0.25))


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    loss = F.l1_loss(decoded, images) + F.mse_loss(decoded, images)
    for ours, theirs in zip(edges(decoded), edges(images), strict=True):
        loss = loss + EDGE_WEIGHT * F.l1_loss(ours, theirs)
    return loss


def train(work: Path, steps: int, start: Path | None, seed: int = 0) -> None:
    """Train for `steps` steps in all, going on from work/autoencoder.safetensors if it is there; the folder work/vae
    gets the averaged weights, with the latents' mean and deviation, whenever this ends.

    start: a VAE of these sizes to begin with instead of random weights.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKLQwenImage.from_pretrained(start) if start else AutoencoderKLQwenImage(**CONFIG)
    still = Still(vae)
    parameters = dict(still.named_parameters())
    run = Run(work / "autoencoder.safetensors", parameters, [optimizer(parameters)])

    def forward(images: Tensor, noise: Tensor) -> Tensor:
        mean, log_variance = still.moments(images)
        deviation = mean.detach().std(dim=(0, 2, 3), keepdim=True)
        decoded = still.decode(mean + noise * (LATENT_NOISE * deviation + (0.5 * log_variance).exp()))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return reconstruction_loss(decoded, images) + KL_WEIGHT * kl

    compiled = torch.compile(forward, dynamic=False)
    for step in run.steps(steps):
        source = random.Random(f"{seed}/{step}")
        side, batch = CROPS[step % len(CROPS)]
        images = torch.from_numpy(np.stack([busy_picture(side, source) for _ in range(batch)]))
        run.descend(compiled(images, noise_of_batch(images, step)), rate(step, steps, 2e-3))
    run.average.swap()
    write(still, work / "vae", latents_of_prompts(still, seed))


def optimizer(parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters.values(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)


def noise_of_batch(images: Tensor, step: int) -> Tensor:
    """For the latents of images (batch, 3, height, width): more noise for some of them than for others."""
    batch, _, height, width = images.shape
    noise = torch.randn(batch, 16, height // 8, width // 8, generator=torch.Generator().manual_seed(step))
    return noise * torch.rand(batch, 1, 1, 1, generator=torch.Generator().manual_seed(step))


@torch.no_grad()
def latents_of_prompts(still: Still, seed: int) -> dict[str, list[float]]:
    """Mean and deviation of each channel over pictures of prompts, as the VAE's config has them."""
    source = random.Random(seed)
    images = [pixels(draw(prompt, 128, 128, source)) for prompt in prompts(seed, MEASURED, kept_out=False)]
    batches = [torch.from_numpy(np.stack(images[i : i + 16])) for i in range(0, MEASURED, 16)]
    latents = torch.cat([still.moments(batch)[0] for batch in batches])
    return {
        "latents_mean": [round(v, 6) for v in latents.mean(dim=(0, 2, 3)).tolist()],
        "latents_std": [round(v, 6) for v in latents.std(dim=(0, 2, 3)).tolist()],
    }


def write(still: Still, folder: Path, config: dict[str, list[float]]) -> None:
    """Save the VAE for diffusers. config: what to change in its config."""
    vae = still.restore()
    vae.register_to_config(**config)
    vae.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of states and results")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--start", type=Path, help="a VAE folder to begin with")
    options = parser.parse_args()
    train(options.work, options.steps, options.start)


if __name__ == "__main__":
    main()
