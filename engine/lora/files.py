"""Adapter files: LoRA and its relatives. Opening one checks all but that its numbers are finite. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.files.safetensors_file import ShardedFile
from engine.checkpoint.files.stored import TensorFile
from engine.config.bounded_json import FILE_LIMITS
from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError, LoraError, printable
from engine.lora.alphas import EXPONENTS, INTEGERS, Alphas
from engine.lora.families import Change, Family, Misfit, family_of, family_of_vector, is_vector
from engine.lora.folders import file_in
from engine.lora.leftovers import complaint, describe_left_out, sort_out, unread_paths
from engine.lora.names import LayerNames, layer_names, shorten, split_key
from engine.lora.schedule import read_schedule

_QWEN_IMAGE_WIDTH = 3072  # of its blocks
_CHECKED_AT_ONCE = 1 << 26  # bytes
# Of headers. A server reads what its clients name beside everything else: this takes it a quarter of a second. A layer
# takes 14 to 50 values, and models have a few hundred.
_LIMITS = FILE_LIMITS._replace(values=1 << 16)


def open_adapter(path: str | Path, config: ModelConfig, *, lenient: bool = False) -> AdapterFile:
    """Opens a safetensors file, or the one that `file_in` finds in a folder, and finds out what it changes.

    lenient: leave out tensors that are for no layer of Krea 2. Raises `LoraError` for a file that is damaged or for
    another model, a tensor that is for no layer, a layer whose tensors are incomplete or do not fit it, and one that is
    changed twice.
    """
    try:
        file = open_tensor_file(file_in(path), _LIMITS)
        if isinstance(file, ShardedFile):  # its shards may lie outside the folders that clients may load from
            raise _error(file, "is the index of several files: a LoRA is one")
        return AdapterFile(file, layer_names(config.transformer), lenient)
    except CheckpointError as error:
        raise LoraError(error.message) from None


class AdapterFile:
    """Holds an open file and its `changes` by layer. left_out: what was not read of it, for people; empty if nothing.
    family: its kinds, such as "LoRA and DoRA", for people. modules: the number of layers, norms and tables that it
    changes. scales: what layers' changes are multiplied by, by the place that says so, empty where none does. schedule:
    what the header says that the file was made for, None for nothing."""

    def __init__(self, file: TensorFile, names: LayerNames, lenient: bool) -> None:
        self.file = file
        self.path = file.path
        groups, left_out = _group(file, names, lenient)
        alphas = Alphas(file, groups)
        self.changes: dict[str, Change] = {}
        for path, tensors in groups.items():
            for change in _changes(file, names, path, tensors, alphas):
                if change.layer in self.changes:
                    found = f"{shorten(path)} is for {change.layer}, which another name in the file is for too"
                    raise _error(file, found)
                self.changes[change.layer] = change
        if alphas.unused:
            name = shorten(min(alphas.unused))
            raise _error(file, f"alpha_pattern names {name}, for which the file has no tensors")
        self.scales = {place: tuple(scales) for place, scales in alphas.scales.items()}
        kinds = Counter("DoRA" if "magnitude" in c.tensors else c.family.value for c in self.changes.values())
        self.family = " and ".join(kind for kind, _ in kinds.most_common())
        self.modules = len(self.changes)
        self.schedule, ignored = read_schedule(file.metadata)
        self.left_out = "; ".join(filter(None, (left_out, ignored)))

    def bytes_on_rank(self, tp: int, bytes_per_element: int) -> int:
        """Returns the bytes that each of `tp` ranks holds of it."""
        return sum(change.bytes_on_rank(tp, bytes_per_element) for change in self.changes.values())

    def check_finite(self) -> None:
        """Reads every number once. Raises `LoraError` if one is NaN or infinite."""
        for name in dict.fromkeys(name for change in self.changes.values() for name in change.tensors.values()):
            header = self.file.headers[name]
            if header.dtype in INTEGERS:
                continue
            kind, exponent = EXPONENTS[header.dtype]
            size = math.prod(header.shape) * np.dtype(kind).itemsize
            for start in range(0, size, _CHECKED_AT_ONCE):
                part = slice(start, min(start + _CHECKED_AT_ONCE, size))
                bits: np.ndarray = self.file.octets(name, part).view(kind)
                if ((bits & exponent) == exponent).any():
                    raise _error(self.file, f"{shorten(name)}: holds values that are not finite")

    def close(self) -> None:
        self.file.close()


_Groups = dict[str, dict[str, str]]  # by path: the tensors' names by role


def _group(file: TensorFile, names: LayerNames, lenient: bool) -> tuple[_Groups, str]:
    groups: _Groups = defaultdict(dict)
    unresolved: list[str] = []
    adapters = set()
    unread = unread_paths(file.headers)
    for key in file.headers:
        split = split_key(key)
        if split is None or split[0] in unread or names.resolve(split[0]) is None:
            unresolved.append(key)
            continue
        path, role, adapter = split
        if role in groups[path]:
            raise _error(file, f"{shorten(key)} and {shorten(groups[path][role])} are the same thing twice")
        groups[path][role] = key
        adapters.add(adapter)
    if len(adapters - {None}) > 1:
        shown = ", ".join(sorted(filter(None, adapters)))
        raise _error(file, f"holds several adapters ({shorten(shown)}): it may hold one")
    sorted_out = sort_out(unresolved, unread)
    if unresolved and (not groups or not lenient):
        raise _error(file, complaint(names, sorted_out, some_resolve=bool(groups)))
    if not groups:
        raise _error(file, "is not a Krea 2 LoRA: it holds no tensors")
    return groups, printable(describe_left_out(sorted_out, len(file.headers)))


def _changes(
    file: TensorFile, names: LayerNames, path: str, tensors: Mapping[str, str], alphas: Alphas
) -> Iterator[Change]:
    layers = names.resolve(path)
    assert layers is not None
    sources = tuple(names.layers[layer] for layer in layers)
    shapes = {role: file.headers[name].shape for role, name in tensors.items()}
    for role, name in tensors.items():
        dtype = file.headers[name].dtype
        if dtype not in EXPONENTS and not (role == "alpha" and dtype in INTEGERS):
            problem = f"is stored as {dtype}, of which nothing says what it stands for"
            raise _error(file, f"{shorten(name)}: {problem}: use a download in F32, F16, BF16 or fp8")
    columns = sources[0].shape[-1]
    try:
        if is_vector(sources[0]):
            family = family_of_vector(shapes, sources[0].shape)
        else:
            family = family_of(shapes, sum(source.shape[0] for source in sources), columns)
    except Misfit as misfit:
        widths = {length for shape in shapes.values() for length in shape}
        hint = ""
        if columns > _QWEN_IMAGE_WIDTH and columns not in widths and _QWEN_IMAGE_WIDTH in widths:
            hint = "; it seems to be a LoRA for Qwen-Image"
        raise _error(file, f"{shorten(path)}: {misfit}{hint}") from None
    if is_vector(sources[0]) and "diff_b" in tensors:
        # LyCORIS' b_norm is there in any case; nothing else of Krea 2 has a place for it
        if not _is_zero(file, tensors["diff_b"]):
            raise _error(file, f"{shorten(tensors['diff_b'])}: is a bias, which norms and tables of Krea 2 do not have")
        if family is Family.BIAS:
            return
        tensors = {role: name for role, name in tensors.items() if role != "diff_b"}
        shapes.pop("diff_b")
    scale = alphas.scale(path, tensors, shapes)
    first = Change(file, layers[0], sources[0], family, tensors, shapes, sources, slice(0, sources[0].shape[0]), scale)
    yield from first.of_stacked()


def _is_zero(file: TensorFile, name: str) -> bool:
    """Whether a small tensor is all zeros."""
    kind, _ = EXPONENTS[file.headers[name].dtype]
    bits: np.ndarray = file.octets(name).view(kind)
    return not (bits << 1).any()  # without the sign


def _error(file: TensorFile, message: str) -> LoraError:
    return LoraError(printable(f"{file.path}: {message}"))
