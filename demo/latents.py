"""Pictures of prompts as the transformer is trained on them: encoded once by the VAE, kept in memory and in a file.

Pictures of one size whose captions have the same number of tokens form a shelf, and a batch is taken from one shelf: so
it needs neither padding nor masks, as the engine needs none.
"""

import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from demo.autoencoder import Still
from demo.captions import prompts
from demo.pictures import SIZES, draw, pixels
from demo.tokenizer import sentence
from demo.writing import write_tensors

# How often each of SIZES is drawn: small pictures, which cost less, more often.
WEIGHTS = (12, 18, 9, 9, 11, 11, 8, 8, 7, 7)
# Captions are also written as people write sentences: `A red circle on a blue background.`
SENTENCES = 0.15

_ENCODED_AT_ONCE = 16
_SAMPLE = "A red circle on a blue background."


class Shelf:
    """latents: (pictures, 16, height / 8, width / 8) float16, normalised by the VAE's mean and deviation. tokens:
    (pictures, tokens) of the whole text, template included."""

    def __init__(self, latents: Tensor, tokens: Tensor) -> None:
        self.latents = latents
        self.tokens = tokens


def patches(latents: Tensor) -> Tensor:
    """(batch, 16, h, w) → (batch, h / 2 · w / 2, 64), the tokens of the transformer: c (h 2) (w 2) -> (h w) (c 2 2)."""
    batch, channels, height, width = latents.shape
    split = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


def unpatched(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `patches`; height and width of the latents."""
    batch, _, channels = tokens.shape
    split = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


class Library:
    """Encoded pictures, in shelves."""

    def __init__(self, shelves: list[Shelf]) -> None:
        self.shelves = shelves
        self._weights = [len(shelf.latents) for shelf in shelves]

    def batch(self, size: int, source: random.Random) -> tuple[Tensor, Tensor]:
        """latents (size, 16, h, w) float32 and tokens (size, n) of one shelf, which is drawn by what it holds."""
        (shelf,) = source.choices(self.shelves, self._weights)
        chosen = torch.tensor([source.randrange(len(shelf.latents)) for _ in range(size)])
        return shelf.latents[chosen].float(), shelf.tokens[chosen]

    def __len__(self) -> int:
        return sum(self._weights)


def library(
    file: Path,
    pictures: int,
    vae: AutoencoderKLQwenImage,
    tokenize: Callable[[str], list[int]],
    *,
    seed: int,
    kept_out: bool = False,
    outlined: bool = False,
) -> Library:
    """Draw and encode `count` pictures, or read them from the file if they are there.

    tokenize: of a caption, to the token ids of the whole text. kept_out: of prompts that training does not see. Raises
    `SystemExit` if the file has other pictures than these.
    """
    made_with = json.dumps(
        [pictures, seed, kept_out, outlined, SIZES, tokenize(_SAMPLE), vae.config.latents_mean, vae.config.latents_std]
    )
    if not file.exists():
        tensors = _encode(file.stem, pictures, vae, tokenize, seed=seed, kept_out=kept_out, outlined=outlined)
        write_tensors(tensors, file, {"made_with": made_with})
    with safe_open(file, "pt") as written:
        if (written.metadata() or {}).get("made_with") != made_with:
            sys.exit(f"{file} was made with other settings, another tokenizer or another VAE; remove it and repeat")
    stored = load_file(file)
    return Library([Shelf(stored[key], stored[f"tokens{key[7:]}"]) for key in sorted(stored) if key[:7] == "latents"])


@torch.no_grad()
def _encode(
    name: str,
    pictures: int,
    vae: AutoencoderKLQwenImage,
    tokenize: Callable[[str], list[int]],
    *,
    seed: int,
    kept_out: bool,
    outlined: bool,
) -> dict[str, Tensor]:
    source = random.Random(f"{seed}/library")
    mean = torch.tensor(vae.config.latents_mean)[:, None, None]
    deviation = torch.tensor(vae.config.latents_std)[:, None, None]
    still = Still(vae)
    torch._dynamo.config.recompile_limit = len(SIZES)
    encode = torch.compile(lambda images: still.moments(images)[0], dynamic=False)
    waiting: dict[int, list[tuple[np.ndarray, list[int]]]] = defaultdict(list)
    latents: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    tokens: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    with tqdm(total=pictures, mininterval=5, desc=name) as bar:
        for i, prompt in enumerate(prompts(seed, pictures, kept_out=kept_out)):
            (size,) = source.choices(range(len(SIZES)), WEIGHTS)
            text = sentence(prompt.text()) if source.random() < SENTENCES else prompt.text()
            image = draw(prompt, *SIZES[size], source, outlined=outlined)
            waiting[size].append((pixels(image), tokenize(text)))
            last = i + 1 == pictures
            for ready in [s for s, images in waiting.items() if len(images) == _ENCODED_AT_ONCE or last]:
                group = waiting.pop(ready)
                stack = np.stack([image for image, _ in group])
                fill = np.zeros((_ENCODED_AT_ONCE - len(group), *stack.shape[1:]), stack.dtype)
                encoded = encode(torch.from_numpy(np.concatenate([stack, fill])))[: len(group)]
                for latent, (_, ids) in zip(((encoded - mean) / deviation).half(), group, strict=True):
                    latents[ready, len(ids)].append(latent)
                    tokens[ready, len(ids)].append(torch.tensor(ids))
                bar.update(len(group))
    still.restore()
    return {f"latents/{size}/{length}": torch.stack(group) for (size, length), group in latents.items()} | {
        f"tokens/{size}/{length}": torch.stack(group) for (size, length), group in tokens.items()
    }
