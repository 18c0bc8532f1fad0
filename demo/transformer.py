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
from diffusers import AutoencoderKLQwenImage, Krea2Transformer2DModel
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLModel

from demo.captions import Prompt, prompts
from demo.latents import Library, library, patches, unpatched
from demo.tokenizer import PREFIX, SUFFIX, adapt_embeddings
from demo.training import Run, rate

TRANSFORMER = {
    "in_channels": 64,
    "num_layers": 6,
    "attention_head_dim": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 352,
    "timestep_embed_dim": 128,
    "text_hidden_dim": 96,
    "num_text_layers": 3,
    "text_num_attention_heads": 4,
    "text_num_key_value_heads": 4,
    "text_intermediate_size": 192,
    "num_layerwise_text_blocks": 1,
    "num_refiner_text_blocks": 1,
    "axes_dims_rope": (4, 6, 6),
}
TAPS = (0, 1, 2)
PREFIX_TOKENS = 34
NO_CAPTION = 0.1
PROMPTS = 20_000  # that batches of prompts are taken from
HELD_OUT_BATCHES = 8  # that the held-out loss is the mean of


def text_config(vocabulary: int) -> Qwen3VLConfig:
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 24,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 4, 4],
                "mrope_interleaved": True,
            },
        },
        # Loaders expect the vision tower; prompts never reach it.
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "num_position_embeddings": 16,
            "out_hidden_size": 96,
            "patch_size": 4,
            "deepstack_visual_indexes": [0],
        },
    )


class Model(nn.Module):
    """The two that are trained, and how they are used together."""

    def __init__(self, transformer: Krea2Transformer2DModel, text_encoder: Qwen3VLModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    @classmethod
    def random(cls, vocabulary: int) -> "Model":
        transformer = Krea2Transformer2DModel(**TRANSFORMER)
        with torch.no_grad():
            for block in transformer.transformer_blocks:
                for linear in (block.attn.to_out[0], block.ff.down):
                    linear.weight.mul_(0.3)
            transformer.final_layer.linear.weight.zero_()
        return cls(transformer, Qwen3VLModel(text_config(vocabulary)))

    @classmethod
    def load(cls, folder: Path) -> "Model":
        return cls(
            Krea2Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32),
            Qwen3VLModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        )

    @torch.no_grad()
    def adapt(self, old: Tokenizer, new: Tokenizer) -> None:
        """Take on another vocabulary."""
        rows = adapt_embeddings(old, new, self.text_encoder.get_input_embeddings().weight)
        self.text_encoder.resize_token_embeddings(len(rows), mean_resizing=False)
        self.text_encoder.get_input_embeddings().weight.copy_(rows)

    def save(self, folder: Path) -> None:
        self.transformer.save_pretrained(folder / "transformer")
        self.text_encoder.save_pretrained(folder / "text_encoder")

    def trained(self) -> dict[str, nn.Parameter]:
        """All parameters but those that no prompt uses."""
        unused = ("text_encoder.visual.", "text_encoder.language_model.norm.", "text_encoder.language_model.layers.2.")
        return {name: p for name, p in self.named_parameters() if not name.startswith(unused)}

    def text(self, tokens: Tensor) -> Tensor:
        """(batch, n) token ids of whole texts → (batch, n − 34, 3, 96)."""
        states = self.text_encoder.language_model(input_ids=tokens, output_hidden_states=True).hidden_states
        return torch.stack([states[tap][:, PREFIX_TOKENS:] for tap in TAPS], dim=2)

    def velocity(self, latents: Tensor, text: Tensor, sigma: Tensor) -> Tensor:
        """Of noisy latents (batch, 16, h, w) at sigma (batch,), with `text` of the same batch; as tokens
        (batch, h / 2 · w / 2, 64)."""
        rows, columns = latents.shape[2] // 2, latents.shape[3] // 2
        grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in (1, rows, columns)))
        positions = torch.cat([torch.zeros(text.shape[1], 3), grid])
        return self.transformer(patches(latents), text, sigma, positions, return_dict=False)[0]

    def guided(self, latents: Tensor, text: Tensor, empty: Tensor, sigma: Tensor, guidance: float | Tensor) -> Tensor:
        """The velocity as latents, (batch, 16, h, w), with Krea's guidance: v + guidance · (v − v of no caption).

        empty: the text of no caption, (1, n, 3, 96). guidance: one for all, or (batch, 1, 1, 1).
        """
        v = unpatched(self.velocity(latents, text, sigma), *latents.shape[2:])
        free = self.velocity(latents, empty.expand(len(latents), -1, -1, -1), sigma)
        return v + guidance * (v - unpatched(free, *latents.shape[2:]))

    def forward(self, latents: Tensor, tokens: Tensor, sigma: Tensor) -> Tensor:
        return self.velocity(latents, self.text(tokens), sigma)

    def compile(self) -> None:
        fusion = self.transformer.text_fusion
        for block in (*fusion.layerwise_blocks, *fusion.refiner_blocks, *self.transformer.transformer_blocks):
            block.compile(dynamic=True)


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
        """So many pictures of each, encoded once for this folder. outlined: those for the LoRA."""
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
