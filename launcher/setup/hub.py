"""Finds models by their Hugging Face names: in the cache of this machine, or downloads them into it."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config.json_fields import read_json_object
from engine.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_INDEX = "model_index.json"
_FOLDERS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
# A repository's root may hold the transformer once more, as a single file.
_PATTERNS = [
    _INDEX,
    "LICENSE*",
    "tokenizer/merges.txt",
    *(f"{folder}/*.{kind}" for folder in _FOLDERS for kind in ("json", "safetensors")),
]
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_ANSWER_S = 10.0  # seconds for the hub to say what a repository holds


def find_model(model: str | None) -> str | None:
    """Return `model` itself, or the folder that a repository of this name has been downloaded to.

    Only what looks like `organisation/name` and is no path here is looked for. Says on stderr what it downloads; what
    was interrupted goes on where it stopped. Raises `ArgumentError` if there is no such repository, it cannot be
    reached, or its licence was not agreed to, and `CheckpointError` if it is not in the diffusers layout.
    """
    if model is None or not _REPOSITORY.fullmatch(model) or Path(model).exists():
        return model
    return str(_cached(model) or _download(model))


def _cached(model: str) -> Path | None:
    """The snapshot in the cache if it holds all that is needed; others may have put a part of it there."""
    # Imported here, since it takes long and few models come from there.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, allow_patterns=_PATTERNS, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    shards = (
        index.parent / shard
        for index in folder.glob("*/*.index.json")
        for shard in set(read_json_object(index).get("weight_map", {}).values())
    )
    needed = chain((folder / name for name in (_INDEX, *_FOLDERS)), shards)
    return folder if all(path.exists() for path in needed) else None


def _size(files: Sequence[RepoSibling]) -> str:
    """Say how large the files are that are needed of a repository, where it says so."""
    needed = [file for file in files if any(fnmatch(file.rfilename, pattern) for pattern in _PATTERNS)]
    size = sum(file.size or 0 for file in needed)
    unit, shown = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    return f" ({len(needed)} files, {size / unit:.1f} {shown})" if size else ""


def _download(model: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    page = f"https://huggingface.co/{model}"
    no_network = (
        ". Where there is no network, download it elsewhere and give its folder, or copy that machine's cache here and "
        "say with HF_HOME where it is"
    )
    reasons: dict[type[Exception], str] = {
        GatedRepoError: f"its authors want you to agree to a licence first, at {page}; do so, then run: hf auth login",
        RepositoryNotFoundError: f"Hugging Face has none of that name; look how it is spelt ({page}), or, if it is a "
        "private one, run: hf auth login",
        OfflineModeIsEnabled: f"not in the cache, and HF_HUB_OFFLINE forbids to download it{no_network}",
    }
    try:
        # an answer soon, where a download tries for long
        found = HfApi().model_info(model, timeout=_ANSWER_S, files_metadata=True)
        if any(file.rfilename == _INDEX for file in found.siblings or ()):
            print(
                f"downloading {model} from Hugging Face{_size(found.siblings or ())}; using its weights means agreeing "
                f"to the licence of their authors: {page}/blob/main/LICENSE.pdf",
                file=sys.stderr,
            )
            return Path(snapshot_download(model, allow_patterns=_PATTERNS, etag_timeout=_ANSWER_S))
    except Exception as error:  # whatever the library's own HTTP client raises
        unknown = f"it cannot be downloaded ({type(error).__name__}: {error}){no_network}"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            unknown = (
                f"the disk of {HF_HUB_CACHE} is full; make room there, or set HF_HOME to a folder on another disk. "
                "What has come is kept, and the download goes on where it stopped"
            )
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), unknown)
        raise ArgumentError(
            f"model {model!r}: there is no such folder or file here. As a Hugging Face repository: {reason}",
            parameter="model",
        ) from None
    raise CheckpointError.of(
        page, "is not in the diffusers layout; download the file of it that you want, and give that as transformer"
    )
