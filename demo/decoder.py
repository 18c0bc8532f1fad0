"""Go on with the decoder of the demo's VAE when the raw model is trained: on what that model draws.

    python -m demo.decoder --work WORK --steps 2000

The transformer's latents are not quite the encoder's: corners are rounded, edges a little off. Pictures
of prompts are encoded and given noise, the raw model says what is under it, guided as when it draws, and the decoder
learns to make the picture of that. So that it stays a decoder of everything, every other batch is of busy pictures
(`demo.autoencoder`) or of outlined ones, with plain noise on their latents.

Reads WORK/raw and WORK/tokenizer, and reads and changes WORK/vae; its latents stay what they are, so this can be done,
and done again, at any time. The state is WORK/decoder.safetensors.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from demo.autoencoder import (
    LATENT_NOISE,
    Still,
    busy_picture,
    noise_of_batch,
    optimizer,
    reconstruction_loss,
    write,
)
from demo.captions import Prompt
from demo.model import Model
from demo.pictures import draw, pixels
from demo.training import Run, rate
from demo.transformer import PromptBatches, caption_ids, read_tokenizer

SIDE = 96  # of the pictures of prompts: the smallest, whose corners are the hardest to keep
SIGMAS = (0.05, 0.6)  # noise levels; Turbo's last step starts at 0.31
GUIDANCE = 2.0  # at most


class Estimates:
    """The raw model's guesses of latents that were given noise."""

    def __init__(self, model: Model, uncaptioned: list[int], mean: Tensor, deviation: Tensor) -> None:
        self.model, self.mean, self.deviation = model, mean, deviation
        self.empty = torch.tensor([uncaptioned])

    @torch.no_grad()
    def __call__(self, latents: Tensor, tokens: Tensor, step: int) -> Tensor:
        """latents (batch, 16, h, w) as the encoder makes them → the same, guessed at a noise level and with a guidance
        drawn for each; tokens (batch, n)."""
        generator = torch.Generator().manual_seed(step)
        sigma = torch.empty(len(latents)).uniform_(*SIGMAS, generator=generator)
        guidance = torch.rand(len(latents), 1, 1, 1, generator=generator) * GUIDANCE
        noise = torch.randn(latents.shape, generator=generator)
        noisy = torch.lerp((latents - self.mean) / self.deviation, noise, sigma[:, None, None, None])
        v = self.model.guided(noisy, self.model.text(tokens), self.model.text(self.empty), sigma, guidance)
        return (noisy - sigma[:, None, None, None] * v) * self.deviation + self.mean


def train(work: Path, steps: int, batch: int = 12, seed: int = 0) -> None:
    torch.manual_seed(seed)
    vae = AutoencoderKLQwenImage.from_pretrained(work / "vae")
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (vae.config.latents_mean, vae.config.latents_std))
    tokenizer = read_tokenizer(work)
    captioned = PromptBatches(tokenizer, seed)
    estimate = Estimates(Model.load(work / "raw"), caption_ids(tokenizer, ""), mean, deviation)
    still = Still(vae)
    parameters = {
        name: parameter
        for name, parameter in still.named_parameters()
        if name.startswith(("vae.decoder.", "vae.post_quant_conv."))
    }
    run = Run(work / "decoder.safetensors", parameters, [optimizer(parameters)])

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        return still.moments(images)[0]

    def loss(latents: Tensor, images: Tensor) -> Tensor:
        return reconstruction_loss(still.decode(latents), images)

    encode, loss = (torch.compile(function, dynamic=False) for function in (encode, loss))

    def of_prompts(chosen: list[Prompt], source: random.Random, outlined: bool = False) -> Tensor:
        return torch.from_numpy(np.stack([pixels(draw(p, SIDE, SIDE, source, outlined=outlined)) for p in chosen]))

    for step in run.steps(steps):
        source = random.Random(f"{seed}/decoder/{step}")
        if step % 2:
            chosen, tokens = captioned.batch(batch, source)
            images = of_prompts(chosen, source)
            latents = estimate(encode(images), tokens, step)
        else:
            if step % 4:
                images = of_prompts(captioned.batch(batch, source)[0], source, outlined=True)
            else:
                images = torch.from_numpy(np.stack([busy_picture(64, source) for _ in range(2 * batch)]))
            latents = encode(images) + LATENT_NOISE * deviation * noise_of_batch(images, step)
        run.descend(loss(latents, images), rate(step, steps, 1e-3))
    run.average.swap()
    write(still, work / "vae", {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of states and results")
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    train(options.work, options.steps)


if __name__ == "__main__":
    main()
