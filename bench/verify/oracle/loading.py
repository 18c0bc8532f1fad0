"""Loads parts of a checkpoint as diffusers' pipeline does, and finds out whether it can be the judge of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import torch

from bench.verify.subject.models import Model

_LAYER = re.compile(r"(?:^|\.)layers\.([0-9]+)\.")
_NEVER_RUN = {  # for an image from a text, by the begin of a name
    "text_encoder": ("visual.", "model.visual.", "lm_head."),
    "vae": ("encoder.", "quant_conv."),
}
_LIBRARIES = ("diffusers", "transformers")


class CannotJudge(Exception):
    """diffusers does not have the checkpoint's numbers, or they are none: whatever differs says nothing of the
    engine."""


def load_parts(model: Model, parts: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    """The modules that `model_index.json` names. Raises `CannotJudge` if one lacks weights, for which these libraries
    draw random numbers."""
    index = json.loads((model.folder / "model_index.json").read_text())
    loaded = {}
    for part in parts:
        library, name = index[part]
        if library not in _LIBRARIES:
            raise CannotJudge(f"model_index.json wants {part} of {library}, not of {' or '.join(_LIBRARIES)}")
        module, told = getattr(import_module(library), name).from_pretrained(
            model.folder / part, torch_dtype=dtype, local_files_only=True, output_loading_info=True
        )
        missing = _that_run(model, part, told["missing_keys"])
        if missing:
            raise CannotJudge(
                f"diffusers cannot be the judge: the {part}'s files lack {len(missing)} weights that {name} wants, for "
                f"which it would draw random numbers; the first is {missing[0]}"
            )
        loaded[part] = module
    return loaded


def check_finite(model: Model, part: str, module: torch.nn.Module) -> None:
    """Raises `CannotJudge` if weights are not finite."""
    finite = {name: torch.isfinite(each.sum(dtype=torch.float32)) for name, each in module.named_parameters()}
    wrong = _that_run(model, part, [name for name, holds in finite.items() if not holds])
    if wrong:
        more = f" and in {len(wrong) - 1} more weights" if len(wrong) > 1 else ""
        raise CannotJudge(f"the checkpoint has numbers that are not finite in the {part}'s {wrong[0]}{more}")


def check_latents(name: str, dtype: str, latents: torch.Tensor) -> None:
    """diffusers' final ones. Raises `CannotJudge` if they are not finite."""
    if not torch.isfinite(latents).all():
        raise CannotJudge(f"diffusers cannot be the judge: its own latents in {dtype} are not finite, of {name}")


def _that_run(model: Model, part: str, names: Iterable[str]) -> list[str]:
    """Those of weights that an image is made with, in an order that layers have."""
    config = model.config
    used = [name for name in names if not name.startswith(_NEVER_RUN.get(part, ()))]
    if part == "text_encoder":
        layers = config.text_layers
        used = [name for name in used if not ((match := _LAYER.search(name)) and int(match[1]) >= layers)]
        if layers < config.text_encoder.num_layers:
            used = [name for name in used if not name.endswith("language_model.norm.weight")]
    return sorted(used, key=_words_and_numbers)


def _words_and_numbers(name: str) -> list[str | int]:
    """In turn, so that layer 10 comes after layer 2."""
    return [int(word) if word.isdecimal() else word for word in re.split(r"([0-9]+)", name)]
