"""Raw or Turbo: what the files of a transformer say of it, and who is believed.

No tensor tells: both have the same names and shapes. Trainers and converters write it into a header, under keys of
their own, and people into a file's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from os.path import isfile
from pathlib import Path
from typing import NamedTuple

from engine.config.json_fields import parse_json_object
from engine.errors import CheckpointError

RAW, TURBO = "raw", "turbo"
# Values of keys that say nothing else, as they are spelt.
_VALUES = {"raw": RAW, "base": RAW, "turbo": TURBO, "distilled": TURBO, "krea2_base": RAW, "krea2_turbo": TURBO}
_FLAGS = {"true": TURBO, "1": TURBO, "false": RAW, "0": RAW}
# musubi-tuner; `variant` as Krea 2 trainers write it beside `model_type: krea2`.
_VALUE_KEYS = ("ss_krea2_dit_variant", "krea2_variant", "variant")
_FLAG_KEYS = ("krea2_is_distilled", "is_distilled")
# What a file calls itself, and then what it was made from: the model that was trained is a better word than its base.
_OWN_NAMES = (
    *("modelspec.title", "modelspec.architecture", "general.name", "general.basename", "general.finetune"),
    *("ss_output_name", "ss_base_model_version"),  # kohya's scripts, musubi-tuner, ai-toolkit
)
_BASE_NAMES = ("ss_sd_model_name", "general.base_model.0.name", "general.base_model.0.repo_url")
_ONE_TRAINER = "ot_config"  # a json object, whose `base_model_name` is a path or a repository
_LONGEST_NAME = 300  # characters that are looked at

# Made Turbo no more, so that guidance and many steps are due again.
_UNDONE = re.compile(r"(?<![a-z])(?:de|un)[-_ .]?(?:distill|turbo)")
_DISTILLED = re.compile(
    r"turbo|distil|(?<![a-z])(?:lightning|dmd2?|lcm|few[-_ .]?steps?)(?![a-z])"
    # 4-step, 8steps; not a training run's epoch-4-step-800, nor 2000 steps
    r"|(?<![a-z0-9.])(?<!epoch[-_ ])(?:[1-9]|1[0-2])[-_ ]?steps?(?![a-z0-9]|[-_ ]?[0-9])"
)
_RAW_WORDS = frozenset(("raw", "base", "krea2raw"))


class Variant(NamedTuple):
    """Which it is. said_by: who says so, for people; None if it is assumed. note: on whoever says otherwise."""

    is_distilled: bool
    said_by: str | None
    note: str | None = None


def decide(
    option: str | None,
    stated: tuple[bool, str] | None,
    metadata: Mapping[str, str],
    path: Path,
    guess: bool,
) -> Variant:
    """Believe the option, then model_index.json or config.json, the header, the file's name, and else the guess.

    option: "raw", "turbo" or None. stated: what a json file says, and its name. metadata: of the transformer's header.
    path: of the transformer. guess: what to take for true if nothing says it.
    """
    said: list[tuple[str, str]] = []  # by whom, and what
    if option is not None:
        return Variant(option == TURBO, "variant")
    if stated is not None:
        said.append((stated[1], TURBO if stated[0] else RAW))
    if (header := variant_by_header(metadata)) is not None:
        said.append((f"{header[1]} in its header", header[0]))
    if (name := variant_by_name(path)) is not None:
        said.append(("its file's name", name))
    if not said:
        return Variant(guess, None)
    by, what = said[0]
    others = [who for who, else_ in said[1:] if else_ != what]
    note = None
    if others:
        kind, other = ("Turbo", "Raw") if what == TURBO else ("Raw", "Turbo")
        note = (
            f"{path}: {by} says that it is {kind}, and {' and '.join(others)} that it is {other}; {kind} is taken, "
            "unless variant is given"
        )
    return Variant(what == TURBO, by, note)


def variant_by_header(metadata: Mapping[str, str]) -> tuple[str, str] | None:
    """Return "raw" or "turbo", and the key of a header's metadata that says so; None if none does."""
    for key in _VALUE_KEYS:
        if (value := metadata.get(key, "").strip().lower()) in _VALUES:
            return _VALUES[value], key
    for key in _FLAG_KEYS:
        if (value := metadata.get(key, "").strip().lower()) in _FLAGS:
            return _FLAGS[value], key
    for key, name in _names(metadata):
        if (found := variant_in(name)) is not None:
            return found, key
    return None


def _names(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key in (*_OWN_NAMES, *_BASE_NAMES):
        if key in metadata:
            yield key, metadata[key]
    if _ONE_TRAINER in metadata:
        try:
            name = parse_json_object(_ONE_TRAINER, metadata[_ONE_TRAINER]).get("base_model_name")
        except CheckpointError:  # which changes no weight
            return
        if isinstance(name, str):
            yield f"{_ONE_TRAINER}.base_model_name", name


def variant_by_name(path: Path) -> str | None:
    """Return what a single file's name says: "turbo", "raw", or None."""
    return variant_in(path.stem) if isfile(path) else None


def variant_in(name: str) -> str | None:
    """Return what a model's name says: "turbo" (also for one that was distilled to a few steps), "raw" (also for base,
    and for one that is distilled no more), or None. Of a path or an address its last part is looked at."""
    text = re.split(r"[/\\]", name[-_LONGEST_NAME:].rstrip("/\\"))[-1].lower()
    if _UNDONE.search(text):
        return RAW
    if _DISTILLED.search(text):
        return TURBO
    return RAW if _RAW_WORDS & set(re.split(r"[^a-z0-9]+", text)) else None
