"""Which LoRAs are in a checkpoint's weights already, as the header of its transformer's file says. Pure Python."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.config.bounded_json import read_json

MERGED_LORAS = "krea2.merged_loras"  # in the metadata: a json list of what `read_merged_loras` gives
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME = 100  # characters
_MOST = 100  # LoRAs


def read_merged_loras(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return `name` and `strength` of each, and its file's `sha256` if that is known. What others may have written
    under the same key is left out."""
    try:
        found = read_json(metadata.get(MERGED_LORAS, "[]"))
    except ValueError:
        return []
    listed = found[:_MOST] if isinstance(found, list) else []
    return [lora for lora in map(_lora, listed) if lora is not None]


def merged_loras_entry(metadata: Mapping[str, str], more: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the metadata of a checkpoint whose own is given, into which `more` have been merged; none if there are
    none."""
    loras = [*read_merged_loras(metadata), *more]
    return {MERGED_LORAS: json.dumps(loras)} if loras else {}


def _lora(found: object) -> dict[str, Any] | None:
    if not isinstance(found, dict):
        return None
    name, strength, sha256 = (found.get(key) for key in ("name", "strength", "sha256"))
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        return None
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        return None
    known = isinstance(sha256, str) and _SHA256.fullmatch(sha256)
    return {"name": name, "strength": float(strength), **({"sha256": sha256} if known else {})}
