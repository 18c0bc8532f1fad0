"""Where the parts of a model are: in one folder in the diffusers layout, or each somewhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.files.open import is_folder
from engine.config.engine_config import PARTS, EngineConfig
from engine.errors import ArgumentError, CheckpointError

_INDEX = "model_index.json"


@dataclass(frozen=True)
class Parts:
    """Where they are.

    paths: a file or a folder for each of `PARTS`. repository: the folder in the diffusers layout whose
    model_index.json and scheduler describe the model; None if there is none. inside: the parts that are this
    repository's own, each in its folder.
    """

    paths: Mapping[str, Path]
    repository: Path | None
    inside: frozenset[str]


def find_parts(engine: EngineConfig) -> Parts:
    """Raises `ArgumentError` naming the parts that are nowhere, and `CheckpointError` if `model` does not exist."""
    given = {part: Path(value) for part in PARTS if (value := getattr(engine, part)) is not None}
    repository = engine.demo
    if repository is None and engine.model is not None:
        model = Path(engine.model)
        if is_folder(model):
            repository = model
        elif not _is_file(model):
            raise CheckpointError.of(model, "there is no such folder or file")
        elif "transformer" in given:
            raise ArgumentError.of("model", "a folder where transformer is given too", engine.model)
        else:
            given["transformer"] = model
            repository = repository_of(model)

    paths, inside, missing = dict(given), [], []
    for part in PARTS:
        if part in given:
            continue
        if repository is None:
            missing.append(part)
            continue
        paths[part] = repository / part
        single = [*repository.glob("*.safetensors")]
        if part == "transformer" and not paths[part].exists() and len(single) == 1:
            paths[part] = single[0]  # as the official repositories have it beside the folder, which is the same again
        else:
            inside.append(part)
    if missing:
        raise ArgumentError(
            f"missing: {', '.join(missing)}; give each as a file or a folder, or as model a folder in the diffusers "
            f"layout, which holds all of {', '.join(PARTS)}",
            parameter=missing[0],
        )
    return Parts(paths, repository or repository_of(paths["transformer"]), frozenset(inside))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def repository_of(path: Path) -> Path | None:
    """The folder in the diffusers layout that a transformer's file or folder is, or lies in."""
    path = path.absolute()
    folder = path if is_folder(path) else path.parent
    candidates = (folder, folder.parent) if folder.name == "transformer" else (folder,)
    return next((each for each in candidates if _is_file(each / _INDEX)), None)


def variant_by_name(path: Path) -> str | None:
    """What a single file's name says: turbo, or raw, which base is another word for. As InvokeAI does it."""
    if not _is_file(path):
        return None
    words = re.split(r"[^a-z0-9]+", path.stem.lower())
    if "turbo" in path.stem.lower():
        return "turbo"
    return "raw" if {"raw", "base"} & set(words) else None
