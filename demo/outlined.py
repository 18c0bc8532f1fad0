"""Train the demo's LoRA, outlined shapes, on its raw model: pictures in which every object has a black line around
it, under captions that say nothing of it.

    python -m demo.outlined --work WORK --steps 3000

Reads WORK/raw, WORK/vae and WORK/tokenizer. The state is WORK/outlined_state.safetensors, and WORK/outlined.safetensors
gets the averaged weights whenever this ends, in bfloat16 and named as diffusers names them.
"""

import argparse
from pathlib import Path

import torch
from diffusers import Krea2Transformer2DModel
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from demo.model import Model
from demo.training import Run
from demo.transformer import Material, add_options, held_out_loss, learn
from demo.writing import write_tensors

RANK = 16
# Attention and feed-forward of the main blocks: text features stay those of the model without the LoRA.
LAYERS = r"transformer_blocks\.\d+\.(attn\.to_(q|k|v|gate|out\.0)|ff\.(gate|up|down))"


def add_lora(transformer: Krea2Transformer2DModel) -> dict[str, nn.Parameter]:
    """Put a LoRA that changes nothing yet on the transformer's blocks; its parameters, by name."""
    # alpha is the rank: the change is then B · A itself, which every loader takes it for if a file does not say
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    return {name: p for name, p in transformer.named_parameters() if ".lora_" in name}


def save(transformer: Krea2Transformer2DModel, file: Path, facts: dict[str, str]) -> None:
    """Write the transformer's LoRA. facts: of its training, for the file's header."""
    layers = get_peft_model_state_dict(transformer)
    tensors = {f"transformer.{name}": tensor.to(torch.bfloat16) for name, tensor in layers.items()}
    write_tensors(tensors, file, {"format": "pt", **facts})


def train(work: Path, options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    material = Material.of(work, options.pictures, options.pictures // 10, options.seed, outlined=True)
    model = Model.load(work / "raw").requires_grad_(False)
    parameters = add_lora(model.transformer)
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
    run = Run(work / "outlined_state.safetensors", parameters, [optimizer], horizon=200)
    learn(run, model, material, options)
    model.transformer.disable_lora()
    print(f"without the LoRA: {held_out_loss(model, material.kept_out):.4f}")
    facts = {"steps": run.step, "batch": options.batch, "rate": options.rate, "pictures": options.pictures}
    save(
        model.transformer,
        work / "outlined.safetensors",
        {
            "title": "outlined shapes",
            "description": "every object gets a black line around it; prompts need no other words",
            "base_model": "the raw model of Krea 2's demo",
            "rank": str(RANK),
            **{f"training_{name}": str(value) for name, value in facts.items()},
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, steps=3000, pictures=3000, batch=32, rate=6e-3)
    options = parser.parse_args()
    train(options.work, options)


if __name__ == "__main__":
    main()
