"""What the tests of bench.verify compare with, and faults that they plant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from bench.verify import ranks
from bench.verify.checks import How
from bench.verify.judging import Check
from engine.rank.rank import Rank
from tests.launcher.processes import PATIENCE_S

CPU = torch.device("cpu")
HOW = How(CPU, CPU, (), PATIENCE_S)
SIZES = [(96, 64)]


def quiet(_: str) -> None: ...


WEIGHTS = {  # by the stage that each is in
    "text encoder embedding": "text_encoder.embed_tokens.weight",
    "text encoder layer 0": "text_encoder.layers.0.mlp.down.weight",
    "text encoder layer 4": "text_encoder.layers.4.attn.norm_q.weight",
    "text fusion layer-wise block 1": "transformer.text_fusion.layerwise_blocks.1.attn.qkvg.weight",
    "text fusion projector": "transformer.text_fusion.projector.weight",
    "text fusion refiner block 0": "transformer.text_fusion.refiner_blocks.0.ff.gate_up.weight",
    "text in-projection": "transformer.txt_in.linear_2.bias",
    "time embedding": "transformer.time_embed.linear_1.weight",
    "time modulation": "transformer.time_mod_proj.bias",
    "image in-projection": "transformer.img_in.weight",
    "transformer block 0": "transformer.transformer_blocks.0.scale_shift_table",
    "transformer block 1": "transformer.transformer_blocks.1.attn.norm_k.weight",
    "transformer block 2": "transformer.transformer_blocks.2.ff.down.weight",
    "final layer": "transformer.final_layer.linear.bias",
    "VAE post_quant_conv": "vae.post_quant_conv.weight",
    "VAE conv_in": "vae.decoder.conv_in.bias",
    "VAE mid block": "vae.decoder.mid_block.attentions.0.proj.weight",
    "VAE up block 0": "vae.decoder.up_blocks.0.upsamplers.0.weight",
    "VAE up block 3": "vae.decoder.up_blocks.3.resnets.1.conv2.weight",
    "VAE norm_out and conv_out": "vae.decoder.norm_out.weight",
}


def first_difference(checked: Sequence[Check]) -> Check:
    return next(check for check in checked if not check.holds)


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Rank], None]) -> None:
    """In every rank that is loaded."""

    class Faulty(Rank):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            with torch.no_grad():
                fault(self)

    monkeypatch.setattr(ranks, "Rank", Faulty)


def scaled(path: str) -> Callable[[Rank], None]:
    """A parameter that is a hundredth too large."""
    return lambda rank: parameter(rank, path).mul_(1.01)


def parameter(rank: Rank, path: str) -> torch.Tensor:
    component, _, name = path.partition(".")
    return getattr(rank.model, component).get_parameter(name)
