"""Finds models by their Hugging Face names: in the cache of this machine, or downloads them into it."""

from __future__ import annotations

import os
import posixpath
import sys
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from engine.checkpoint.files.file_sets import STEMS, file_sets, files_to_take, tensor_files
from engine.checkpoint.nearby import INDEX
from engine.checkpoint.tokenizer_files import find_tokenizer
from engine.config.engine_config import PARTS, EngineConfig
from engine.config.json_fields import read_json_object
from engine.errors import ArgumentError, CheckpointError
from launcher.hub.asking import ask, cached, download, explained, shown_size
from launcher.hub.names import HubName

_FOLDERS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
# A repository's root may hold the transformer once more, as a single file.
_PATTERNS = [
    *(INDEX, "LICENSE*", "tokenizer/merges.txt"),
    *(f"{folder}/*.{kind}" for folder in _FOLDERS for kind in ("json", "safetensors")),
]


def locate(engine: EngineConfig) -> EngineConfig:
    """The same configuration with its model on this machine: see `find_model`. Raises `ArgumentError` for a part that
    is named by a repository, too: such are not downloaded."""
    for part in PARTS:
        text = getattr(engine, part)
        if text is None or os.path.lexists(text) or (name := HubName.of_lora(text) or HubName.of_model(text)) is None:
            continue
        what = [name.repository, *([name.file] if name.file else [])]
        what += ["--revision", name.revision] if name.revision else []
        what += ["--include '*.json' '*.txt'"] if part == "tokenizer" else []
        raise ArgumentError(
            f"{part} {text!r}: there is no such file or folder here. If it is in a Hugging Face repository, give the "
            f"path that this prints: hf download {' '.join(what)}",
            parameter=part,
        )
    return replace(engine, model=find_model(engine.model))


def find_model(model: str | None) -> str | None:
    """Return `model` itself, or the folder that a repository of this name has been downloaded to.

    Only what looks like `owner/name` or `owner/name@revision` and is no path here is looked for. Says on stderr what it
    downloads; what was interrupted goes on where it stopped. Raises `ArgumentError` if there is no such repository, it
    cannot be reached, or its licence was not agreed to, and `CheckpointError` if it is not in the diffusers layout.
    """
    name = None if model is None else HubName.of_model(model)
    if model is None or name is None:
        return model
    return str(_cached(name) or _download(name, model))


def _cached(name: HubName) -> Path | None:
    """The snapshot in the cache if it holds all that is needed; others may have put a part of it there."""
    folder = cached(name, [INDEX])
    if folder is None or not all((folder / each).exists() for each in (INDEX, *_FOLDERS)):
        return None
    try:
        find_tokenizer(folder / "tokenizer")  # of which an older release may have left merges.txt out
    except CheckpointError:
        return None
    return folder if all(has_weights(folder / component, stem) for component, stem in STEMS.items()) else None


def has_weights(folder: Path, stem: str) -> bool:
    """Whether a snapshot has all of a component's files."""
    names = [file.name for file in folder.iterdir() if file.exists()]
    found = file_sets(names, stem) or file_sets(names)
    if not found or not found[0].is_whole:
        return False
    index = found[0].index
    weight_map = None if index is None else read_json_object(folder / index).get("weight_map")
    shards = weight_map.values() if isinstance(weight_map, dict) else ()
    return {shard for shard in shards if isinstance(shard, str)} <= {
        *names
    }  # what else is there, whoever opens it says


def _download(name: HubName, given: str) -> Path:
    with explained(name, given, "model"):
        sizes = {file.rfilename: file.size or 0 for file in ask(name).siblings or ()}
        needed = _needed(sizes)
        if INDEX in needed:
            size = sum(sizes[file] for file in needed)
            print(
                f"downloading {given} from Hugging Face ({len(needed)} files, {shown_size(size)}); using its weights "
                f"means agreeing to the licence of their authors: {name.page}/blob/main/LICENSE.pdf",
                file=sys.stderr,
            )
            return download(name, needed)
    raise CheckpointError.of(
        name.page, "is not in the diffusers layout; download the file of it that you want, and give that as transformer"
    )


def _needed(files: Iterable[str]) -> list[str]:
    """Those of a repository's files that are read: of weights in several precisions those that would be."""
    needed = [file for file in files if any(fnmatch(file, pattern) for pattern in _PATTERNS)]
    for component in STEMS:
        inside = {posixpath.basename(file) for file in needed if posixpath.dirname(file) == component}
        others = {f"{component}/{name}" for name in tensor_files(inside) - files_to_take(inside, component)}
        needed = [file for file in needed if file not in others]
    return needed
