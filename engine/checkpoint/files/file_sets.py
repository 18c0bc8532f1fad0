"""Which files of a folder are a component: one file or shards, with an index or without, in full precision or another.

As diffusers and transformers name them, now and formerly: `model.fp16.safetensors`; for shards
`model.safetensors.index.fp16.json` or `model.fp16.safetensors.index.json`, with `model.fp16-00001-of-00002.safetensors`
or `model-00001-of-00002.fp16.safetensors`. Pure Python, by names alone, be they of a repository that is not here yet.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

# Of a component's folder in the diffusers layout.
STEMS = {"transformer": "diffusion_pytorch_model", "text_encoder": "model", "vae": "diffusion_pytorch_model"}
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")  # of what is never read
# The best first; whatever else a repository calls a variant follows. `non_ema` is what training went on from, of which
# the file without a variant is the running mean that was published.
_VARIANTS = ("", "fp32", "bf16", "fp16", "ema")
_LAST = "non_ema"
_FILE = re.compile(r"(?P<head>[^/\\]{1,200})\.safetensors(?:(?P<index>\.index)(?P<late>\.\w{1,20})?\.json)?")
_SHARD = re.compile(r"(?P<head>.+)-(?P<number>[0-9]{1,6})-of-(?P<count>[0-9]{1,6})(?P<late>\.\w{1,20})?")


@dataclass(frozen=True)
class FileSet:
    """The files of a component in one variant.

    stem, variant: `model` and `fp16`; the variant is empty for full precision. single: its one file, or None. index: of
    its shards, or None. shards: in order; none where an index alone says what they are called. absent: names of shards
    that are not there, or, of an index alone, what to call them.
    """

    stem: str
    variant: str
    single: str | None
    index: str | None
    shards: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return self.single is not None or not self.absent

    @property
    def entry(self) -> str:
        """The name of what is opened: of shards without an index, the first."""
        return self.single or self.index or self.shards[0]

    @property
    def pattern(self) -> str:
        """What to call all its shards."""
        return _with_number(self.shards[0], "*")

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all that is read."""
        if self.single is not None:
            return (self.single,)
        return (*((self.index,) if self.index else ()), *self.shards)


def file_sets(names: Iterable[str], stem: str | None = None) -> list[FileSet]:
    """List the components among a folder's files, the one to take first: whole before not, then full precision before
    less. stem: of the names; None for any."""
    names = sorted(names)
    singles: dict[tuple[str, str], str] = {}
    indexes: dict[tuple[str, str], str] = {}
    shards: dict[tuple[str, str, int], dict[int, str]] = defaultdict(dict)
    for name in names:
        parsed = _parse(name, stem)
        if parsed is None:
            continue
        (own, variant), number, count, is_index = parsed
        if is_index:
            indexes.setdefault((own, variant), name)
        elif number:
            shards[own, variant, count].setdefault(number, name)
        else:
            singles[own, variant] = name
    sets = [FileSet(*key, single, None, (), ()) for key, single in singles.items()]
    for (own, variant, count), numbered in shards.items():
        listed = tuple(numbered[number] for number in sorted(numbered))
        absent = tuple(_with_number(listed[0], f"{number:05}") for number in _gaps(numbered, count))
        sets.append(FileSet(own, variant, None, indexes.pop((own, variant), None), listed, absent))
    others = {shard for each in sets for shard in each.files}
    unclaimed = any(name.endswith(".safetensors") and name not in others for name in names)
    sets += [
        FileSet(*key, None, index, (), () if unclaimed or not others else ("its shards",))
        for key, index in indexes.items()
    ]
    return sorted(sets, key=lambda each: (not each.is_whole, _rank(each.variant), each.single is None, each.entry))


def is_shard(name: str) -> bool:
    """Whether a file is one of several."""
    parsed = _parse(name, None)
    return parsed is not None and 1 <= parsed[1] <= parsed[2] and parsed[2] > 1


def set_of(name: str, names: Iterable[str]) -> FileSet | None:
    """Return what a file is a part of, among the names of its folder."""
    return next((each for each in file_sets(names) if name in each.files), None)


def variants_beside(name: str, names: Iterable[str]) -> list[str]:
    """List what of a folder in the diffusers layout was not taken, where a file of it was: the names to give."""
    names = list(names)
    taken = set_of(name, names)
    if taken is None or taken.stem not in STEMS.values():
        return []
    return [each.entry for each in file_sets(names, taken.stem) if name not in each.files]


def files_to_take(names: Iterable[str], component: str) -> set[str]:
    """Return which of the files of a component's folder to download, of its tensors' files: those of one variant. All
    of them, where an index alone says what belongs to it, or where no names are those of the layout."""
    named = list(names)
    sets = file_sets(named, STEMS[component])
    if not sets or not (sets[0].single or sets[0].shards):
        return tensor_files(named)
    return set(sets[0].files)


def tensor_files(names: Iterable[str]) -> set[str]:
    """Return those that hold tensors, or say which files do."""
    return {name for name in names if _FILE.fullmatch(name)}


def _parse(name: str, stem: str | None) -> tuple[tuple[str, str], int, int, bool] | None:
    """Stem and variant, a shard's number and their count (0 for none), and whether it is an index."""
    found = _FILE.fullmatch(name)
    if found is None:
        return None
    head, late, number, count = found["head"], found["late"], 0, 0
    if found["index"] is None and (shard := _SHARD.fullmatch(head)) is not None:
        head, late, number, count = shard["head"], shard["late"], int(shard["number"]), int(shard["count"])
    if late:
        variant = late[1:]
    elif stem is not None or head.partition(".")[0] in STEMS.values():
        head, _, variant = head.partition(".")
    else:
        before, _, last = head.rpartition(".")
        head, variant = (before, last) if before and last.lower() in (*_VARIANTS, _LAST) else (head, "")
    if stem is not None and head != stem:
        return None
    return (head, variant), number, count, found["index"] is not None


def _rank(variant: str) -> tuple[int, str]:
    lower = variant.lower()
    known = _VARIANTS.index(lower) if lower in _VARIANTS else len(_VARIANTS)
    return known + 2 * (_LAST in lower), lower


def _gaps(numbered: dict[int, str], count: int) -> Iterable[int]:
    """The numbers that are missing, some of them: a name may claim a million."""
    return [number for number in range(1, min(count, len(numbered) + 8) + 1) if number not in numbered]


def _with_number(shard: str, number: str) -> str:
    """A shard's name with another number."""
    found = _SHARD.match(shard)
    assert found is not None
    start, end = found.span("number")
    return f"{shard[:start]}{number}{shard[end:]}"
