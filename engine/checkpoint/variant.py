"""Raw or Turbo: what the files of a transformer say of it, and who is believed.

No tensor tells: both have the same names and shapes. Trainers and converters write it into a header, under keys of
their own, and people into a file's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from os.path import isfile
from pathlib import Path
from typing import NamedTuple

from engine.checkpoint.files.file_sets import STEMS
from engine.config.json_fields import parse_json_object
from engine.errors import CheckpointError

RAW, TURBO = "raw", "turbo"
# Values of keys that say nothing else, as they are spelt.
_VALUES = {"raw": RAW, "base": RAW, "turbo": TURBO, "distilled": TURBO, "krea2_base": RAW, "krea2_turbo": TURBO}
_FLAGS = {"true": TURBO, "1": TURBO, "false": RAW, "0": RAW}
# musubi-tuner; `variant` as Krea 2 trainers write it beside `model_type: krea2`.
_VALUE_KEYS = ("ss_krea2_dit_variant", "krea2_variant", "variant")
WRITTEN = "is_distilled"  # what `variant_entry` writes, and model_index.json has
_FLAG_KEYS = (WRITTEN, "krea2_is_distilled")
# What a file calls itself, and then what it was made from: the model that was trained is a better word than its base.
_OWN_NAMES = (
    *("modelspec.title", "modelspec.architecture", "general.name", "general.basename", "general.finetune"),
    *("ss_output_name", "ss_base_model_version"),  # kohya's scripts, musubi-tuner, ai-toolkit
)
_BASE_NAMES = ("ss_sd_model_name", "general.base_model.0.name", "general.base_model.0.repo_url")
_ONE_TRAINER = "ot_config"  # a json object, whose `base_model_name` is a path or a repository
_CONFIGS_NAME = "_name_or_path"  # in config.json: where diffusers loaded it from before it was saved
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
    config: Mapping[str, object],
    guess: bool,
) -> Variant:
    """Believe the option, then model_index.json or config.json, what the header says of the file, the name, what header
    or config.json say that it was made from (of Raw, Turbo may have been made since), and else the guess.

    option: "raw", "turbo" or None. stated: what a json file says, and its name. metadata: of the transformer's header.
    path, config: of the transformer. guess: what to take for true if nothing says it. A note tells of what is not
    believed: a header's word, or that of a name beside it.
    """
    if option is not None:
        return Variant(option == TURBO, "variant")
    header, name, base = variant_by_header(metadata), variant_by_name(path), variant_by_base(metadata, config)
    said: list[tuple[str, str]] = []  # what, and by whom
    if stated is not None:
        said.append((TURBO if stated[0] else RAW, stated[1]))
    if header is not None:
        said.append((header[0], f"{header[1]} in its header"))
    if name is not None:
        said.append((name, "its name"))
    if base is not None:
        said.append((base[0], f"{base[1]} of what it was made from"))
    if not said:
        return Variant(guess, None)
    (what, by), *_ = said
    note = None
    explicit = said[: len(said) - (base is not None)]
    if header is not None and (other := next((each for each in explicit if each[0] != what), None)) is not None:
        kinds = ("Turbo", "Raw") if what == TURBO else ("Raw", "Turbo")
        note = f"{path}: {by} says that it is {kinds[0]}, and {other[1]} that it is {kinds[1]}; {kinds[0]} is taken"
        note += ", unless variant is given"
    return Variant(what == TURBO, by, note)


def variant_by_header(metadata: Mapping[str, str]) -> tuple[str, str] | None:
    """Return "raw" or "turbo", and the key of a header's metadata that says so of the file; None if none does."""
    for keys, values in ((_VALUE_KEYS, _VALUES), (_FLAG_KEYS, _FLAGS)):
        for key in keys:
            if (value := metadata.get(key, "").strip().lower()) in values:
                return values[value], key
    return _first((key, metadata.get(key)) for key in _OWN_NAMES)


def variant_by_base(metadata: Mapping[str, str], config: Mapping[str, object]) -> tuple[str, str] | None:
    """Return what a header or config.json says of the model that a file was made from, as `variant_by_header`."""
    names: list[tuple[str, object]] = [(key, metadata.get(key)) for key in _BASE_NAMES]
    if _ONE_TRAINER in metadata:
        with suppress(CheckpointError):  # it changes no weight
            settings = parse_json_object(_ONE_TRAINER, metadata[_ONE_TRAINER])
            names.append((f"{_ONE_TRAINER}.base_model_name", settings.get("base_model_name")))
    return _first((*names, (_CONFIGS_NAME, config.get(_CONFIGS_NAME))))


def _first(names: Iterable[tuple[str, object]]) -> tuple[str, str] | None:
    """What the first of the names says that says it, and its key."""
    for key, name in names:
        if isinstance(name, str) and (found := variant_in(name)) is not None:
            return found, key
    return None


def variant_entry(is_distilled: bool) -> dict[str, str]:
    """Return the metadata by which a transformer's file says what it is."""
    return {WRITTEN: "true" if is_distilled else "false"}


def variant_by_name(path: Path) -> str | None:
    """Return what the name of a file or a folder says, "turbo", "raw", or None: the folder's where the file, or the
    folder in it, is called as in every repository."""
    path = path.absolute()
    name = path.stem if isfile(path) else path.name
    if isfile(path) and name.partition(".")[0].partition("-0")[0] in STEMS.values():
        path = path.parent
        name = path.name
    return variant_in(path.parent.name if name == "transformer" else name)


def variant_in(name: str) -> str | None:
    """Return what a model's name says: "turbo" (also for one that was distilled to a few steps), "raw" (also for base,
    and for one that is distilled no more), or None. Of a path or an address its last part is looked at."""
    text = re.split(r"[/\\]", name[-_LONGEST_NAME:].rstrip("/\\"))[-1].lower()
    if _UNDONE.search(text):
        return RAW
    if _DISTILLED.search(text):
        return TURBO
    return RAW if _RAW_WORDS & set(re.split(r"[^a-z0-9]+", text)) else None
