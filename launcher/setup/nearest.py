"""Finds what was meant by a name that nothing has: the nearest one that something has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from engine.config.demo_checkpoints import DEMO_CHECKPOINTS, DEMO_LORAS
from engine.config.engine_config import PARTS
from launcher.hub.names import HubName

MODELS = ("krea/Krea-2-Turbo", "krea/Krea-2-Raw", *DEMO_CHECKPOINTS)
_PATHS = (
    "model",
    *PARTS,
    "loras",
    "lora_dir",
    "prompts_file",
    "image",
    "mask",
    "api_key_file",
    "key_limits",
    "rpc_keys",
)
_SHOWN = 40  # characters at the end of a path, which each error has
_MOST_NAMES = 10_000  # of a folder that are looked at


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of these names that is most like a name, whatever its capitals; None if none is much like it."""
    known = {each.casefold(): each for each in names}
    close = get_close_matches(name.casefold(), known, n=1)
    return known[close[0]] if close else None


def nearest_path(path: str) -> str | None:
    """The path of something that is there, folder by folder the name that is nearest to the one in `path`."""
    found = Path()
    for part in Path(path).parts:
        if not os.path.lexists(found / part):
            try:
                with os.scandir(found) as entries:
                    close = nearest(part, [entry.name for entry in islice(entries, _MOST_NAMES)])
            except OSError:
                return None
            if close is None:
                return None
            part = close
        found /= part
    return str(found)


def nearest_model(model: str) -> str | None:
    """The demo, the folder or file, or the repository whose name is nearest to that of a model that is none. None for a
    repository that is there, and could not be had."""
    name = HubName.of_model(model)
    if name is not None and name.repository in MODELS:
        return None
    return nearest(model, MODELS) or nearest_path(model)


def nearest_to_given(parameters: Mapping[str, Any], message: str) -> str | None:
    """What was meant by the first path among a command's parameters that is not there, if the message is about it."""
    for name in _PATHS:
        values = parameters.get(name)
        for value in values if isinstance(values, tuple) else (values,):
            text = "" if value is None else str(value)
            if name == "loras":
                text = re.sub(r"^[^=/]*=|:[-+.\d]+$", "", text)
            if not text or text[-_SHOWN:] not in message or "\0" in text or os.path.lexists(text):
                continue
            if name == "model":
                return nearest_model(text)
            return (nearest(text, DEMO_LORAS) if name == "loras" else None) or nearest_path(text)
    return None
