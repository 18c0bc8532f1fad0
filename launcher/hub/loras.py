"""Finds LoRAs by their Hugging Face names: in the cache of this machine, or downloads the file into it."""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Collection
from glob import escape
from pathlib import Path

from engine.checkpoint.files.file_sets import PICKLE_SUFFIXES
from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.nearby import INDEX
from engine.errors import CheckpointError, printable
from engine.lora.folders import PEFT_CONFIG, PEFT_WEIGHTS, USUAL_NAMES
from launcher.hub.asking import ask, cached, download, explained, refusal, shown_size
from launcher.hub.names import HubName

_SUFFIX = ".safetensors"
_MOST_LISTED = 10
_LONGEST_LICENCE = 60  # characters of what a repository calls it


def find_lora(path: str, *, most_bytes: int) -> str:
    """Return `path` itself, or the file that a repository's LoRA has been downloaded to.

    Only what `HubName.of_lora` reads is looked for: of a repository without the file's name PEFT's file, diffusers', or
    the only one. Says on stderr what it downloads: that file, and PEFT's config if it is for it. most_bytes: what the
    file may have. Raises `ArgumentError` if there is no such repository or file, if there are several to choose from,
    if it cannot be reached or its licence was not agreed to.
    """
    name = HubName.of_lora(path)
    if name is None:
        return path
    return str(_cached(name) or _download(name, path, most_bytes))


def _cached(name: HubName) -> Path | None:
    """The file in the cache, if there is no other in its repository that may be meant, as far as the cache knows."""
    folder, file = _place_in_cache(name)
    if folder is None or not (folder / file).exists():
        return None
    return None if _is_peft(folder / file) and cached(name, [escape(_config(file))]) is None else folder / file


def _place_in_cache(name: HubName) -> tuple[Path | None, str]:
    """The folder of a repository's files, and the file in it that is meant; no folder if there is no such file."""
    for wanted in USUAL_NAMES if name.file is None else (name.file,):
        folder = cached(name, [escape(wanted)])
        if folder is None or name.file is not None or (folder / wanted).exists():
            return folder, wanted
    folder = cached(name, [f"*{_SUFFIX}"])
    files = [] if folder is None else [file.relative_to(folder).as_posix() for file in folder.rglob(f"*{_SUFFIX}")]
    return (folder, files[0]) if len(files) == 1 else (None, "")


def _download(name: HubName, given: str, most_bytes: int) -> Path:
    with explained(name, given, "lora"):
        found = ask(name)
        sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
        file = _choose(name, sizes, given)
        if sizes[file] > most_bytes:
            raise refusal(given, "lora", f"{printable(file)} must be at most {most_bytes} bytes, and has {sizes[file]}")
        licence = getattr(found.card_data, "license", None)
        called = f", {printable(licence[:_LONGEST_LICENCE])}" if isinstance(licence, str) else ""
        print(
            f"downloading {printable(file)} of {name.shown} from Hugging Face ({shown_size(sizes[file])}); using it "
            f"means agreeing to the licence of its authors{called}: {name.page}",
            file=sys.stderr,
        )
        return _fetch(name, file, sizes)


def _fetch(name: HubName, file: str, known: Collection[str]) -> Path:
    """Download a file, and PEFT's config if it is for it, which comes before: the file is not looked at again then."""
    config, folder = _config(file), posixpath.dirname(file)
    beside = [each for each in known if each.endswith(_SUFFIX) and posixpath.dirname(each) == folder]
    is_for_it = posixpath.basename(file) == PEFT_WEIGHTS or len(beside) == 1
    if config in known and is_for_it:
        download(name, [config])
    found = download(name, [file]) / file
    if config in known and not is_for_it and _is_peft(found):
        download(name, [config])
    return found


def _choose(name: HubName, sizes: dict[str, int], given: str) -> str:
    files = sorted(file for file in sizes if file.endswith(_SUFFIX))
    if name.file is not None and name.file in files:
        return name.file
    if name.file is None:
        if INDEX in sizes:
            raise refusal(given, "lora", f"it is a model, and no LoRA: --model {name.shown}")
        if (preferred := next((file for file in USUAL_NAMES if file in files), None)) or len(files) == 1:
            return preferred or files[0]
    if not files:
        pickles = [file for file in sizes if file.endswith(PICKLE_SUFFIXES)]
        found = f", but {_listed(sizes, pickles)}, and pickles are not read, which can run any code" if pickles else ""
        raise refusal(given, "lora", f"it has no {_SUFFIX} file{found}")
    problem = "it has several files" if name.file is None else f"it has no file {printable(name.file)}"
    raise refusal(given, "lora", f"{problem}; name one, as {name.shown}/{printable(files[0])}: {_listed(sizes, files)}")


def _listed(sizes: dict[str, int], files: list[str]) -> str:
    more = f" and {len(files) - _MOST_LISTED} more" if len(files) > _MOST_LISTED else ""
    return ", ".join(f"{printable(file)} ({shown_size(sizes[file])})" for file in files[:_MOST_LISTED]) + more


def _config(file: str) -> str:
    return posixpath.join(posixpath.dirname(file), PEFT_CONFIG)


def _is_peft(file: Path) -> bool:
    """Whether PEFT wrote it, whose config beside it counts then."""
    try:
        opened = open_tensor_file(file)
    except CheckpointError:  # which whoever reads it will say
        return False
    opened.close()
    return any(name.startswith("base_model.model.") for name in opened.headers)
