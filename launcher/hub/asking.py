"""Asks the Hugging Face hub for what is not in the cache, and says in a sentence why it cannot be had."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ArgumentError, Krea2Error, printable
from launcher.hub.names import HubName

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

ANSWER_S = 10.0  # seconds for the hub to say what a repository holds


def ask(name: HubName) -> ModelInfo:
    """What a repository holds, within `ANSWER_S`, where a download tries for long. Raises what the library does."""
    # Imported here and below, since it takes long and little comes from there.
    from huggingface_hub import HfApi

    return HfApi().model_info(name.repository, revision=name.revision, timeout=ANSWER_S, files_metadata=True)


def cached(name: HubName, files: Iterable[str]) -> Path | None:
    """The folder in the cache that a repository's files were downloaded to, None if there is none. Not all of the files
    need be in it, whose names are patterns; newer releases of the library know if some are not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name.repository, revision=name.revision, allow_patterns=[*files], local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None


def download(name: HubName, files: Iterable[str]) -> Path:
    """Download these files unless they are in the cache, and return the folder that they are in. Raises what the
    library does."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name.repository, revision=name.revision, allow_patterns=[*map(escape, files)], etag_timeout=ANSWER_S
        )
    )


@contextmanager
def explained(name: HubName, given: str, parameter: str) -> Iterator[None]:
    """Make an `ArgumentError` of what the library raises, which says what to do. given: what is no path here."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    own = "folder" if parameter == "model" else "path"
    no_network = (
        f". Where there is no network, download it elsewhere and give its {own}, or copy that machine's cache here and "
        "say with HF_HOME where it is"
    )
    reasons: dict[type[Exception], str] = {
        GatedRepoError: f"its authors want you to agree to a licence first, at {name.page}; do so, then run: hf auth "
        "login",
        RepositoryNotFoundError: f"Hugging Face has none of that name; look how it is spelt ({name.page}), or, if it "
        "is a private one, run: hf auth login",
        RevisionNotFoundError: f"it has no branch, tag or whole commit {name.revision} ({name.page}/tree/main lists "
        "branches and tags)",
        OfflineModeIsEnabled: f"not in the cache, and HF_HUB_OFFLINE forbids to download it{no_network}",
    }
    try:
        yield
    except Krea2Error:
        raise
    except Exception as error:  # whatever the library's own HTTP client raises
        told = printable(" ".join(str(error).split()))
        unknown = f"it cannot be downloaded ({type(error).__name__}: {told}){no_network}"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            unknown = (
                f"the disk of {HF_HUB_CACHE} is full; make room there, or set HF_HOME to a folder on another disk. "
                "What has come is kept, and the download goes on where it stopped"
            )
        raise refusal(
            given, parameter, next((text for kind, text in reasons.items() if isinstance(error, kind)), unknown)
        ) from None


def refusal(given: str, parameter: str, reason: str) -> ArgumentError:
    """Say why a repository does not do, and that nothing of its name lies here."""
    return ArgumentError(
        f"{parameter} {given!r}: there is no such folder or file here. As a Hugging Face repository: {reason}",
        parameter=parameter,
    )


def shown_size(size: int) -> str:
    """Of a file, in decimal units."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
