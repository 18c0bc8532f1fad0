"""What `krea2 info` tells of a component's files."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from engine.checkpoint.files.file_sets import variants_beside
from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.layouts.belonging import held
from engine.checkpoint.layouts.component import Component, open_text_encoder, open_transformer, open_vae
from engine.checkpoint.layouts.encodings import stored_tensors
from engine.checkpoint.layouts.names import is_lora
from engine.checkpoint.layouts.other_models import other_model
from engine.checkpoint.merged_loras import read_merged_loras
from engine.checkpoint.part_paths import find_parts
from engine.checkpoint.variant import decide
from engine.config.engine_config import PARTS, EngineConfig
from engine.errors import ArgumentError, CheckpointError

_OPENERS = {"transformer": open_transformer, "text_encoder": open_text_encoder, "vae": open_vae}


def describe_component(name: str, component: Component, formats: Iterable[str]) -> list[str]:
    """Tell in lines which file a component is in, in which names and formats, and what lies beside it. formats: of the
    tensors that are used."""
    file = next(iter(component.tensors.values())).file
    beside = variants_beside(file.name, os.listdir(file.parent))
    return [
        str(component.file.path),
        f"{component.layout}: {_counted(formats)}{_merged_into(name, component)}",
        *(f"not taken: {other}" for other in beside),
    ]


def is_lone_file(config: EngineConfig) -> bool:
    """Whether `model` is a file, and the other parts are given nowhere."""
    if config.model is None or not Path(config.model).is_file():
        return False
    try:
        find_parts(config)
    except ArgumentError:
        return all(getattr(config, part) is None for part in PARTS)
    return False


def describe_file(path: Path) -> str:
    """Tell which part of a model a single file is, in which names and formats. Raises `CheckpointError` if it is
    damaged or no part of one, or if none of the parts that it holds can be read."""
    with closing(open_tensor_file(path)) as file:
        names, metadata = list(stored_tensors(file)), file.metadata
    parts: list[str] = []
    files: set[Path] = set()
    problems: list[CheckpointError] = []
    for part in held(names):
        name = part.replace("_", " ")
        try:
            component = _OPENERS[part](path)
        except CheckpointError as error:
            problems.append(error)
            continue
        component.file.close()
        files |= {tensor.file for tensor in component.tensors.values()}  # all shards of one
        stored = _counted(tensor.format for tensor in component.tensors.values())
        numbers = sum(math.prod(tensor.shape) for tensor in component.tensors.values())
        stored += _merged_into(name, component)
        variant = _variant_of(component, path) if name == "transformer" else ""
        parts.append(f"Krea 2's {name}: {path}\n  {component.layout}: {stored}\n  {variant}{numbers:,} parameters")
    if parts:
        listed = "\n".join(parts)
        size, more = megabytes(sum(each.stat().st_size for each in files)), "more is said if the other parts are given"
        return f"{listed} in {size}; {more}" if len(parts) == 1 else f"{listed}\n{size} together; {more}"
    if problems:
        raise problems[0]
    if is_lora(names):
        raise CheckpointError.of(path, f"is a LoRA; give it beside a model: krea2 info --lora {path}")
    other = other_model(names, metadata)
    problem = "is no part of Krea 2" + ("" if other is None else f": it is {other}")
    raise CheckpointError.of(path, problem, expected="its transformer, text encoder or VAE")


def said_by(who: str | None) -> str:
    """Say who tells a variant that no json file and no option does, as is added to its name."""
    return " (assumed)" if who is None else "" if who.endswith(".json") or who == "variant" else f" ({who} says so)"


def _variant_of(component: Component, path: Path) -> str:
    """What a transformer's file by itself says of Raw and Turbo."""
    found = decide(None, None, component.file.metadata, path, {}, guess=True)
    return "" if found.said_by is None else f"{'Turbo' if found.is_distilled else 'Raw'}{said_by(found.said_by)}, "


def _merged_into(name: str, component: Component) -> str:
    loras = read_merged_loras(component.file.metadata) if name == "transformer" else []
    listed = ", ".join(f"{lora['name']} at {lora['strength']:g}" for lora in loras)
    return f"; with {listed} merged into it" if loras else ""


def _counted(formats: Iterable[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(formats).most_common())


def megabytes(size: int) -> str:
    """Write a number of bytes."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
