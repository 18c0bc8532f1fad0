"""Finds image classifiers by their Hugging Face names: in the cache of this machine, or downloads them into it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from engine.checkpoint.files.file_sets import PICKLE_SUFFIXES, FileSet, file_sets
from launcher.hub.asking import ask, cached, download, explained, refusal, shown_size
from launcher.hub.models import has_weights
from launcher.hub.names import HubName

CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # one of them says how pictures are prepared
_STEM = "model"  # of the files with the weights


def find_classifier(folder: str) -> str:
    """Return `folder` itself, or the folder that a repository of this name has been downloaded to.

    Only what looks like `owner/name` or `owner/name@revision` and is no path here is looked for. Says on stderr what it
    downloads. Raises `ArgumentError` if there is no such repository, it cannot be reached, its licence was not agreed
    to, or it is no classifier with safetensors files.
    """
    name = HubName.of_model(folder)
    return folder if name is None else str(_cached(name) or _download(name, folder))


def weights_of(names: Iterable[str]) -> FileSet | str:
    """The files with the weights among a folder's, or why there are none to be read."""
    names = list(names)
    sets = file_sets(names, _STEM)
    if sets and sets[0].is_whole:
        return sets[0]
    if sets:
        return f"it lacks {', '.join(sets[0].absent)} of {sets[0].entry}"
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        return f"it has no {_STEM}.safetensors but {pickles[0]}, and pickles are not read, which can run any code"
    return f"it has no {_STEM}.safetensors"


def _cached(name: HubName) -> Path | None:
    folder = cached(name, [CONFIG])
    if folder is None or not (folder / CONFIG).exists() or not any((folder / each).exists() for each in PROCESSORS):
        return None
    return folder if has_weights(folder, _STEM) else None


def _download(name: HubName, given: str) -> Path:
    with explained(name, given, "filters"):
        sizes = {file.rfilename: file.size or 0 for file in ask(name).siblings or ()}
        prepared = [each for each in PROCESSORS if each in sizes]
        if CONFIG not in sizes or not prepared:
            raise refusal(given, "filters", f"it is no classifier, which has {CONFIG} and {PROCESSORS[0]}")
        weights = weights_of(sizes)
        if isinstance(weights, str):
            raise refusal(given, "filters", weights)
        needed = [CONFIG, *prepared, *weights.files]
        size = shown_size(sum(sizes[file] for file in needed))
        print(
            f"downloading {given} from Hugging Face ({len(needed)} files, {size}); using "
            f"its weights means agreeing to the licence of their authors: {name.page}",
            file=sys.stderr,
        )
        return download(name, needed)
