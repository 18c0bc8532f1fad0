"""Write trained models as checkpoints in the official layout of Krea 2, in bfloat16, and draw a picture with each by
diffusers.

    python -m demo.release --work WORK [--note TEXT]

Reads WORK/vae, WORK/tokenizer, WORK/{raw,turbo}/{transformer,text_encoder} and WORK/outlined.safetensors; writes
WORK/release/{raw,turbo}, the LoRA and the pictures beside them. What has not been trained yet is left out.
"""

import argparse
import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
)
from diffusers.utils import logging
from PIL import Image
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen3VLModel

from demo.captions import COLOURS, SHAPES, WORDS
from demo.pictures import RADII, SIZES

USES = {
    "raw": "The undistilled one of the pair, for 40 steps and more with guidance, and to train LoRAs on.",
    "turbo": "The distilled one of the pair: 8 steps, no guidance.",
}
TAPS = (0, 1, 2)
LORA = "outlined.safetensors"
LARGEST_PAIR = 20_000_000  # bytes: both ship in the wheel
EXAMPLE = "a large purple diamond at the left on a white background"

SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 6400,
    "max_shift": 1.15,
    "use_dynamic_shifting": True,
}
# What the engine reads from model_index.json beyond diffusers' own keys: of each variant, and of both.
DEFAULTS: dict[str, dict[str, Any]] = {"raw": {"default_steps": 40, "default_guidance": 2.0}, "turbo": {}}
ENGINE_KEYS = {
    "default_width": 128,
    "default_height": 128,
    "good_sides": [min(map(min, SIZES)), max(map(max, SIZES))],
    "prompt_words": sorted(WORDS),
    "prompt_note": (
        f'This small demo model draws coloured shapes, such as "{EXAMPLE}", "a green star above a pink heart on a '
        'white background" or "two yellow stars on a black background", and makes nothing of other prompts. Those '
        "need the real Krea 2: start generate or serve with --model krea/Krea-2-Turbo (or krea/Krea-2-Raw), which is "
        "downloaded from Hugging Face, or with --model FOLDER. It takes a GPU with 40 GB of memory, or one with 12 GB "
        "and --memory-budget 12GB."
    ),
}


def release(work: Path, note: str = "") -> Path:
    """Write the checkpoint of each variant that has been trained; the folder of all of them. note: a sentence on their
    making, for their README.

    Raises `SystemExit` if there is none, or if they take more than the wheel may carry.
    """
    folder = work / "release"
    trained = [variant for variant in USES if (work / variant).exists()]
    if not trained:
        sys.exit(f"nothing to release: {work} has neither {' nor '.join(USES)}")
    total = 0
    for variant in trained:
        shutil.rmtree(folder / variant, ignore_errors=True)
        write(work, variant, folder / variant, note)
        draw(folder / variant, **DEFAULTS[variant]).save(folder / f"{variant}.png")
        size = sum(file.stat().st_size for file in (folder / variant).rglob("*") if file.is_file())
        print(f"{folder / variant}: {size / 1e6:.1f} MB")
        total += size
    lora = work / LORA
    if lora.exists():
        shutil.copyfile(lora, folder / LORA)  # without the mode: safetensors writes files that nobody else may read
    if total > LARGEST_PAIR:
        sys.exit(f"the checkpoints take {total / 1e6:.1f} MB, more than {LARGEST_PAIR / 1e6:.0f} MB")
    return folder


def write(work: Path, variant: str, folder: Path, note: str) -> None:
    """One checkpoint. The DiT's norms stay in float32, as diffusers keeps them."""
    trained = work / variant
    transformer = Krea2Transformer2DModel.from_pretrained(trained / "transformer", torch_dtype=torch.bfloat16)
    text_encoder = Qwen3VLModel.from_pretrained(trained / "text_encoder", dtype=torch.bfloat16)
    vae = AutoencoderKLQwenImage.from_pretrained(work / "vae", torch_dtype=torch.bfloat16)
    Krea2Pipeline(
        transformer=transformer,
        text_encoder=text_encoder,
        vae=vae,
        tokenizer=AutoTokenizer.from_pretrained(work / "tokenizer"),
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        text_encoder_select_layers=TAPS,
        is_distilled=variant == "turbo",
    ).save_pretrained(folder)
    _change(folder / "model_index.json", **ENGINE_KEYS, **DEFAULTS[variant])
    for config in ("transformer", "vae"):
        _change(folder / config / "config.json", _name_or_path="")  # the work folder's
    parts = {"transformer": transformer, "text_encoder": text_encoder, "vae": vae}
    (folder / "README.md").write_text(readme(variant, parts, training_steps(work), note))
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files that nobody else may read


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}, indent=2) + "\n")


def draw(folder: Path, default_steps: int = 8, default_guidance: float = 0.0) -> Image.Image:
    """A picture that diffusers draws with the checkpoint."""
    pipeline = Krea2Pipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        EXAMPLE,
        width=ENGINE_KEYS["default_width"],
        height=ENGINE_KEYS["default_height"],
        num_inference_steps=default_steps,
        guidance_scale=default_guidance,
        generator=torch.Generator().manual_seed(0),
    ).images[0]


def training_steps(work: Path) -> dict[str, int]:
    """How many steps each training in the work folder has made, by the name of its state's file."""
    steps = {}
    for file in sorted(work.glob("*.safetensors")):
        with safe_open(file, "pt") as state:
            metadata = state.metadata() or {}
        if "step" in metadata:
            steps[file.stem] = int(metadata["step"])
    return steps


def readme(variant: str, parts: dict[str, Any], steps: dict[str, int], note: str) -> str:
    """The checkpoint's README.md. parts: its three models by name. steps: of each training. note: on its making."""
    dit, text, vae = parts["transformer"].config, parts["text_encoder"].config.text_config, parts["vae"].config
    millions = {
        name: f"{sum(p.numel() for p in part.parameters()) / 1e6:.1f} M parameters" for name, part in parts.items()
    }
    sides = [side for size in SIZES for side in size]
    across = f"{2 * RADII['small']} or {2 * RADII['large']}"
    making = (
        "By `make demo-checkpoint` in the engine's repository, in the end with these numbers of training steps: "
        f"{', '.join(f'{name} {count:,}' for name, count in steps.items())}. {note}"
    )
    return f"""\
# Krea 2 in small: {variant}

{USES[variant]}

It exists so that the engine can be seen to work without a GPU or a download. Every weight and every picture in its
making was generated for it; its licence is the engine's.

## What it draws

Coloured shapes on a plain background, with sides from {min(sides)} to {max(sides)} pixels, upright, square or wide:

- one object: "a red circle on a blue background", if wanted with `small` or `large` before the colour ({across} pixels
  across, {2 * RADII[""]} without a word) and with `at the left`, `right`, `top` or `bottom` after the shape:
  "{EXAMPLE}";
- two: "a red circle left of a green star on a white background", or `right of`, `above`, `below`;
- some of a kind: "two pink hearts on a gray background", "three yellow rings on a black background".

Colours: {", ".join(COLOURS)}.
Shapes: {", ".join(SHAPES)}.

It knows no other words than these; they are `prompt_words` in `model_index.json`.

## What it is made of

| part | size |
|---|---|
| DiT, text fusion | {dit.num_layers} blocks, width {dit.num_attention_heads * dit.attention_head_dim}, \
{dit.num_attention_heads} heads, {dit.num_key_value_heads} kv heads; {millions["transformer"]} |
| text encoder | {text.num_hidden_layers} layers, width {text.hidden_size}, taps {", ".join(map(str, TAPS))}; \
{millions["text_encoder"]} with a vision tower that nothing uses |
| tokenizer | byte-level BPE in Qwen's form, {text.vocab_size} tokens |
| VAE | width {vae.base_dim}, {vae.z_dim} latent channels; {millions["vae"]} |

Weights are in bfloat16, the norms of the DiT in float32.

## How it was made

{textwrap.fill(making, 120, break_on_hyphens=False)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of states and results")
    parser.add_argument("--note", default="", help="a sentence on the making of these checkpoints, for their README")
    options = parser.parse_args()
    logging.set_verbosity_error()  # else it warns of the engine's keys in model_index.json
    release(options.work, options.note)


if __name__ == "__main__":
    main()
