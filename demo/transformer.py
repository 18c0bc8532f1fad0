"""Train the demo's raw model, diffusers' Krea2Transformer2DModel and transformers' Qwen3-VL text model together, by
flow matching on pictures of prompts.

    python -m demo.transformer --work WORK --steps 20000

x_σ = (1 − σ) · latents + σ · noise, and the model learns the velocity noise − latents. One batch in ten has no caption,
for guidance. Reads WORK/vae and WORK/tokenizer; the state is WORK/raw.safetensors, and WORK/raw gets the averaged
weights whenever this ends.
"""

import argparse
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from tokenizers import Tokenizer
from torch import Tensor, nn

from demo.captions import Prompt, prompts
from demo.latents import Library, library, patches
from demo.model import Model
from demo.tokenizer import PREFIX, SUFFIX
from demo.training import Run, rate

NO_CAPTION = 0.1
PROMPTS = 20_000  # that batches of prompts are taken from
HELD_OUT_BATCHES = 8  # that the held-out loss is the mean of


def read_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))


def caption_ids(tokenizer: Tokenizer, caption: str) -> list[int]:
    """The whole text's tokens: the suffix is tokenized apart, as the references do."""
    return [
        *tokenizer.encode(PREFIX + caption, add_special_tokens=False).ids,
        *tokenizer.encode(SUFFIX, add_special_tokens=False).ids,
    ]


class PromptBatches:
    """Prompts to train with, in batches whose whole texts have equally many tokens."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._by_length: dict[int, list[tuple[Prompt, list[int]]]] = defaultdict(list)
        for prompt in prompts(seed, PROMPTS, kept_out=False):
            ids = caption_ids(tokenizer, prompt.text())
            self._by_length[len(ids)].append((prompt, ids))
        self._lengths = sorted(self._by_length)
        self._weights = [len(self._by_length[length]) for length in self._lengths]

    def batch(self, size: int, source: random.Random) -> tuple[list[Prompt], Tensor]:
        """The prompts and their tokens, (size, n)."""
        (length,) = source.choices(self._lengths, self._weights)
        chosen = source.choices(self._by_length[length], k=size)
        return [prompt for prompt, _ in chosen], torch.tensor([ids for _, ids in chosen])


def optimizers(parameters: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for all else."""
    inside = {
        name: p
        for name, p in parameters.items()
        if p.ndim == 2 and ".weight" in name and ("blocks." in name or "layers." in name)
    }
    rest = [p for name, p in parameters.items() if name not in inside]
    return [
        torch.optim.Muon(inside.values(), lr=0.0, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels of a batch: a logit-normal, about as dense as the steps of Turbo's schedule. Little of it lies at
    low noise, whose errors the VAE's decoder forgives."""
    return torch.sigmoid(0.8 + 1.1 * torch.randn(count, generator=generator))


def velocity_loss(model: nn.Module, latents: Tensor, tokens: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator)
    sigma = draw_sigmas(len(latents), generator)
    mixed = torch.lerp(latents, noise, sigma[:, None, None, None])
    return F.mse_loss(model(mixed, tokens, sigma), patches(noise - latents))


@torch.no_grad()
def held_out_loss(model: Model, pictures: Library) -> float:
    """The loss on prompts that training does not see; the same noise each time."""
    batches = [pictures.batch(32, random.Random(i)) for i in range(HELD_OUT_BATCHES)]
    losses = [velocity_loss(model, *batch, seed=i).item() for i, batch in enumerate(batches)]
    return sum(losses) / len(losses)


@dataclass(frozen=True)
class Material:
    """What there is to learn from, in a work folder. kept_out: pictures of prompts that training does not see."""

    tokenizer: Tokenizer
    pictures: Library
    kept_out: Library

    @classmethod
    def of(cls, work: Path, pictures: int, kept_out: int, seed: int, *, outlined: bool = False) -> "Material":
        """`pictures` pictures of each, encoded once for this folder. outlined: those for the LoRA."""
        tokenizer = read_tokenizer(work)
        vae = AutoencoderKLQwenImage.from_pretrained(work / "vae")
        prefix = "outlined_" if outlined else ""

        def encoded(name: str, count: int, seed: int, kept_out: bool) -> Library:
            return library(
                work / f"{prefix}{name}.safetensors",
                count,
                vae,
                lambda caption: caption_ids(tokenizer, caption),
                seed=seed,
                kept_out=kept_out,
                outlined=outlined,
            )

        return cls(tokenizer, encoded("latents", pictures, seed, False), encoded("kept_out", kept_out, seed + 1, True))

    def batch(self, size: int, source: random.Random) -> tuple[Tensor, Tensor]:
        """As `Library.batch`, one time in ten without a caption."""
        latents, tokens = self.pictures.batch(size, source)
        if source.random() < NO_CAPTION:
            tokens = torch.tensor(caption_ids(self.tokenizer, "")).expand(size, -1)
        return latents, tokens


def learn(run: Run, model: Model, material: Material, options: argparse.Namespace) -> None:
    """Train by flow matching what `run` has of the model, and leave its averaged weights in the model. Of the options,
    reads steps, minutes, batch, rate and seed."""
    model.compile()
    until = time.monotonic() + options.minutes * 60 if options.minutes else float("inf")
    for step in run.steps(options.steps, until):
        batch = material.batch(options.batch, random.Random(f"{options.seed}/{step}"))
        run.descend(velocity_loss(model, *batch, seed=step), rate(step, options.steps, options.rate))
        if step % 500 == 499:
            print(f"step {step + 1}: held-out loss {held_out_loss(model, material.kept_out):.4f}", flush=True)
    run.average.swap()
    print(f"held-out loss of the averaged weights: {held_out_loss(model, material.kept_out):.4f}")


def train(work: Path, options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    material = Material.of(work, options.pictures, options.kept_out, options.seed)
    if options.start:
        model = Model.load(options.start)
        model.adapt(read_tokenizer(options.start), material.tokenizer)
    else:
        model = Model.random(material.tokenizer.get_vocab_size())
    parameters = model.trained()
    learn(Run(work / "raw.safetensors", parameters, optimizers(parameters), horizon=1000), model, material, options)
    model.save(work / "raw")


def add_options(parser: argparse.ArgumentParser, steps: int, pictures: int, batch: int, rate: float) -> None:
    """Those of every training by flow matching, with these defaults."""
    parser.add_argument("--work", type=Path, required=True, help="folder of states and results")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, help="stop after so long, to be resumed")
    parser.add_argument("--pictures", type=int, default=pictures)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--seed", type=int, default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, steps=20000, pictures=40000, batch=48, rate=2e-3)
    parser.add_argument(
        "--kept-out", type=int, default=1000, help="pictures of held-out prompts, to measure the loss on"
    )
    parser.add_argument("--start", type=Path, help="a checkpoint to begin with, its latents and words taken anew")
    options = parser.parse_args()
    train(options.work, options)


if __name__ == "__main__":
    main()
