"""Distil the demo's turbo model from its raw one: 8 steps without guidance instead of 40 with it.

    python -m demo.distill --work WORK --trajectories 6000 --steps 4000

The raw model, guided, walks from noise to picture in many small steps through the eight noise levels of Turbo's
schedule; the student learns to cross each stretch in one step, so its target is the straight line between two levels.
Walks whose picture is not what the prompt asked for, as the judge of `demo.judge` sees it, teach nothing, unless all
are wanted (`--unjudged`).

Reads WORK/raw, WORK/vae and WORK/tokenizer. Walks lie in WORK/walks, a file a batch, and are made once; the state is
WORK/turbo.safetensors, and WORK/turbo gets the averaged weights whenever this ends.
"""

import argparse
import hashlib
import json
import math
import random
import sys
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from demo.autoencoder import Still
from demo.judge import look, verdict
from demo.latents import WEIGHTS, Library, Shelf, patches
from demo.model import Model
from demo.pictures import SIZES
from demo.training import Run, rate
from demo.transformer import PromptBatches, caption_ids, optimizers, read_tokenizer
from demo.writing import write_tensors

TURBO_STEPS = 8
TURBO_MU = 1.15
_WALKS_AT_ONCE = 32


def turbo_sigmas() -> Tensor:
    """(9,): Krea 2's schedule of 8 steps, shifted by mu 1.15, and 0."""
    even = torch.linspace(1, 1 / TURBO_STEPS, TURBO_STEPS)
    return torch.cat([math.exp(TURBO_MU) / (math.exp(TURBO_MU) + 1 / even - 1), torch.zeros(1)])


class Teacher:
    """The raw model with guidance, and its pictures.

    guidance: Krea's scale. substeps: of each of the eight stretches.
    """

    def __init__(self, model: Model, vae: AutoencoderKLQwenImage, uncaptioned: Tensor, guidance: float, substeps: int):
        self.model, self.guidance, self.substeps = model, guidance, substeps
        self.empty = uncaptioned[None]
        self.mean = torch.tensor(vae.config.latents_mean)[:, None, None]
        self.deviation = torch.tensor(vae.config.latents_std)[:, None, None]
        self.still = Still(vae)

    @torch.no_grad()
    def fingerprint(self) -> str:
        """Of the weights: another for every step of their training."""
        digest = hashlib.sha256()
        for parameter in self.model.trained().values():
            digest.update(parameter.contiguous().numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def walk(self, noise: Tensor, tokens: Tensor) -> Tensor:
        """noise (batch, 16, h, w) → latents at the nine levels (batch, 9, 16, h, w)."""
        text = self.model.text(tokens)
        empty = self.model.text(self.empty)
        x, levels = noise, [noise]
        for start, end in turbo_sigmas().unfold(0, 2, 1):
            fine = torch.linspace(start, end, self.substeps + 1)
            for sigma, following in fine.unfold(0, 2, 1):
                sigmas = sigma.expand(len(x))
                x = x + (following - sigma) * self.model.guided(x, text, empty, sigmas, self.guidance)
            levels.append(x)
        return torch.stack(levels, dim=1)

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> list[Image.Image]:
        decoded = self.still.decode(latents * self.deviation + self.mean).clamp(-1, 1)
        bytes_ = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(each) for each in bytes_]


def make_walks(
    folder: Path,
    count: int,
    teacher: Teacher,
    prompts: PromptBatches,
    seed: int,
    unjudged: bool,
) -> None:
    """Walks of `count` prompts, in files of a batch each: `latents` (walks, 9, 16, h, w) float32 and `tokens`. Batches
    that this teacher has made before are not made again. unjudged: wrong ones are kept too."""
    folder.mkdir(parents=True, exist_ok=True)
    made_with = json.dumps([teacher.fingerprint(), teacher.guidance, teacher.substeps, seed, unjudged])
    taken = seen = 0
    for batch in tqdm(range(math.ceil(count / _WALKS_AT_ONCE)), desc="walks", mininterval=5):
        file = folder / f"{batch:05}.safetensors"
        if file.exists() and _made_with(file) == made_with:
            continue
        source = random.Random(f"{seed}/walks/{batch}")
        chosen, tokens = prompts.batch(_WALKS_AT_ONCE, source)
        width, height = source.choices(SIZES, WEIGHTS)[0]
        generator = torch.Generator().manual_seed(seed + 1_000_000 + batch)
        noise = torch.randn(_WALKS_AT_ONCE, 16, height // 8, width // 8, generator=generator)
        walks = teacher.walk(noise, tokens)
        pictures = teacher.pictures(walks[:, -1])
        kept = [
            i
            for i, (prompt, picture) in enumerate(zip(chosen, pictures, strict=True))
            if unjudged or all(verdict(prompt, look(picture)).values())
        ]
        taken, seen = taken + len(kept), seen + len(pictures)
        write_tensors({"latents": walks[kept], "tokens": tokens[kept]}, file, {"made_with": made_with})
    if seen:
        print(f"{taken} of {seen} walks are to be learned from", flush=True)


def _made_with(file: Path) -> str | None:
    with safe_open(file, "pt") as walks:
        return (walks.metadata() or {}).get("made_with")


def read_walks(folder: Path, count: int) -> Library:
    """All walks of the first `count` batches. Raises `SystemExit` if there is none."""
    shelves: dict[tuple[int, ...], list[dict[str, Tensor]]] = defaultdict(list)
    for batch in range(math.ceil(count / _WALKS_AT_ONCE)):
        stored = load_file(folder / f"{batch:05}.safetensors")
        if len(stored["tokens"]):
            shelves[(*stored["latents"].shape[2:], stored["tokens"].shape[1])].append(stored)
    if not shelves:
        sys.exit(
            "the teacher drew nothing right: train the raw model for longer, or take all of its walks by --unjudged"
        )
    return Library(
        [
            Shelf(torch.cat([f["latents"] for f in files]), torch.cat([f["tokens"] for f in files]))
            for files in shelves.values()
        ]
    )


def straight_line_loss(model: Model, walks: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Of one stretch of each walk, (batch, 9, 16, h, w), drawn at random."""
    sigmas = turbo_sigmas()
    stretch = torch.randint(TURBO_STEPS, (len(walks),), generator=generator)
    rows = torch.arange(len(walks))
    start, end = walks[rows, stretch], walks[rows, stretch + 1]
    velocity = (end - start) / (sigmas[stretch + 1] - sigmas[stretch])[:, None, None, None]
    return F.mse_loss(model(start, tokens, sigmas[stretch]), patches(velocity))


def distill(work: Path, options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    tokenizer = read_tokenizer(work)
    vae = AutoencoderKLQwenImage.from_pretrained(work / "vae")
    uncaptioned = torch.tensor(caption_ids(tokenizer, ""))
    prompts = PromptBatches(tokenizer, options.seed + 2)

    model = Model.load(work / "raw")
    model.compile()
    teacher = Teacher(model, vae, uncaptioned, options.guidance, options.substeps)
    make_walks(work / "walks", options.trajectories, teacher, prompts, options.seed, options.unjudged)
    walks = read_walks(work / "walks", options.trajectories)

    parameters = model.trained()
    run = Run(work / "turbo.safetensors", parameters, optimizers(parameters), horizon=400)
    for step in run.steps(options.steps):
        source = random.Random(f"{options.seed}/turbo/{step}")
        loss = straight_line_loss(model, *walks.batch(options.batch, source), torch.Generator().manual_seed(step))
        run.descend(loss, rate(step, options.steps, options.rate))
    run.average.swap()
    model.save(work / "turbo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of states and results")
    parser.add_argument("--trajectories", type=int, default=6000)
    parser.add_argument("--unjudged", action="store_true", help="learn from walks to wrong pictures too")
    parser.add_argument("--guidance", type=float, default=2.0, help="of the teacher")
    parser.add_argument("--substeps", type=int, default=5, help="of the teacher, for each step of the student")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    distill(options.work, options)


if __name__ == "__main__":
    main()
