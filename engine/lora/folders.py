"""Which file of a folder is the LoRA. Imports no torch."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from engine.errors import LoraError, printable

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
USUAL_NAMES = (PEFT_WEIGHTS, _DIFFUSERS_WEIGHTS)  # of which every such folder has one
_MOST_ENTRIES = 1000  # that are looked at
_MOST_LISTED = 10  # files in an error


def file_in(path: str | Path) -> Path:
    """Returns the file that a path means: itself, or of a folder PEFT's, else diffusers', else the only one.

    Raises `LoraError` for a folder that holds several others or none.
    """
    if not os.path.isdir(path):
        return Path(path)
    folder = Path(path)
    for name in USUAL_NAMES:
        if os.path.lexists(folder / name):
            return folder / name
    names = safetensors_in(folder)
    if names is None:
        raise _error(folder, f"holds more than {_MOST_ENTRIES} entries: name the LoRA's file")
    if len(names) == 1:
        return folder / names[0]
    if not names:
        expected = f"{PEFT_WEIGHTS}, {_DIFFUSERS_WEIGHTS} or one other"
        raise _error(folder, f"is a folder without a safetensors file: a LoRA's has {expected}")
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    raise _error(folder, f"is a folder of several files: name one of {', '.join(names[:_MOST_LISTED])}{more}")


def safetensors_in(folder: Path) -> list[str] | None:
    """Lists a folder's safetensors files, without hidden ones; None if it holds too much to look at. Raises
    `LoraError` if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _MOST_ENTRIES + 1)]
    except OSError as error:
        raise _error(folder, str(error.strerror)) from None
    if len(names) > _MOST_ENTRIES:
        return None
    return sorted(name for name in names if name.endswith(".safetensors") and not name.startswith("."))


def _error(folder: Path, problem: str) -> LoraError:
    return LoraError(printable(f"{folder}: {problem}"))
