"""Finds models by their Hugging Face names: in the cache of this machine, or downloads them into it."""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from engine.config.json_fields import read_json_object
from engine.errors import CheckpointError
from launcher.hub.asking import ask, cached, download, explained, shown_size
from launcher.hub.names import HubName

_INDEX = "model_index.json"
_FOLDERS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
# A repository's root may hold the transformer once more, as a single file.
_PATTERNS = [
    *(_INDEX, "LICENSE*", "tokenizer/merges.txt"),
    *(f"{folder}/*.{kind}" for folder in _FOLDERS for kind in ("json", "safetensors")),
]
_WEIGHTS = re.compile(
    r"[^.]+(?:\.(?P<variant>[A-Za-z]\w*))?(?:-[0-9]+-of-[0-9]+)?\.safetensors(?:\.index(?:\.(?P<indexed>\w+))?\.json)?"
)


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
    folder = cached(name, [_INDEX])
    if folder is None or not all((folder / each).exists() for each in (_INDEX, *_FOLDERS)):
        return None
    files = _needed([file.relative_to(folder).as_posix() for file in folder.glob("*/*")])
    weights = [folder / file for file in files if file.endswith(".safetensors")]
    shards = [
        folder / posixpath.dirname(index) / shard
        for index in files
        if ".index." in index
        for shard in set(read_json_object(folder / index).get("weight_map", {}).values())
    ]
    whole = {file.parent.name for file in weights} >= {"text_encoder", "transformer", "vae"}
    return folder if whole and all(path.exists() for path in (*weights, *shards)) else None


def _download(name: HubName, given: str) -> Path:
    with explained(name, given, "model"):
        sizes = {file.rfilename: file.size or 0 for file in ask(name).siblings or ()}
        needed = _needed(sizes)
        if _INDEX in needed:
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
    """Those of a repository's files that are read: of weights that are there in full precision too, not the others."""
    known = [file for file in files if any(fnmatch(file, pattern) for pattern in _PATTERNS)]
    variants = {(posixpath.dirname(file), _variant(file)) for file in known if _WEIGHTS.fullmatch(file)}
    return [file for file in known if not _variant(file) or (posixpath.dirname(file), "") not in variants]


def _variant(file: str) -> str:
    """What a file's name says of its precision, as `fp16`, in diffusers' and transformers' forms."""
    match = _WEIGHTS.fullmatch(file)
    return "" if match is None else match["variant"] or match["indexed"] or ""
