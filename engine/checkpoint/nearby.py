"""What to give in place of a folder that is no checkpoint: what lies in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from engine.errors import CheckpointError

INDEX = "model_index.json"
_TENSOR_FILES = (".safetensors", ".gguf")
# How far is looked: a cache of Hugging Face has its checkpoints three folders down.
_MOST_FOLDERS, _DEPTH, _MOST_SHOWN = 2000, 3, 6
_LIKE_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?:@.+)?")


def no_checkpoint(folder: Path) -> CheckpointError:
    """Make the error of a folder in which there is no model_index.json."""
    folders = list(islice(_folders(folder), _MOST_FOLDERS))
    checkpoints = [each for each in folders if os.path.isfile(each / INDEX)]
    files = _tensor_files(folder) or [file for each in folders for file in _tensor_files(each)]
    advice = "a model is a folder that has one, a transformer's file, the name of a Hugging Face repository, or demo"
    if checkpoints:
        advice = f"give one of the checkpoints in it: {_listed(checkpoints)}"
    elif files:
        advice = f"give one of the files in it as model, or each as the part that it is: {_listed(files)}"
    taken = ""
    if _LIKE_REPOSITORY.fullmatch(str(folder)) and not folder.is_absolute():
        taken = "; a folder here goes before a Hugging Face repository of the same name"
    return CheckpointError.of(folder, f"is no checkpoint, for there is no {INDEX} in it; {advice}{taken}")


def _tensor_files(folder: Path) -> list[Path]:
    return sorted(file for suffix in _TENSOR_FILES for file in folder.glob(f"*{suffix}"))


def _folders(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """The folders in a folder, those that can be read, nearer ones first."""
    try:
        inner = sorted(Path(each) for each in os.scandir(folder) if each.is_dir() and not each.name.startswith("."))
    except OSError:
        return
    yield from inner
    if depth > 1:
        for each in inner:
            yield from _folders(each, depth - 1)


def _listed(paths: list[Path]) -> str:
    more = f" and {len(paths) - _MOST_SHOWN} more" if len(paths) > _MOST_SHOWN else ""
    return ", ".join(map(str, paths[:_MOST_SHOWN])) + more
