"""Adapter files: LoRA and its relatives. Opening one checks all but that its numbers are finite. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.files.safetensors_file import ShardedFile
from engine.checkpoint.files.stored import FLOAT_BYTES, TensorFile
from engine.config.bounded_json import FILE_LIMITS, read_json
from engine.config.json_fields import read_json_object
from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError, LoraError, printable
from engine.lora.families import Change, Misfit, family_of, rank_of
from engine.lora.names import LayerNames, layer_names, shorten, split_key, strip_prefixes

_PEFT_WEIGHTS, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_QWEN_IMAGE_WIDTH = 3072  # of its blocks
_CHECKED_AT_ONCE = 1 << 26  # bytes
# Of headers. A server reads what its clients name beside everything else: this takes it a quarter of a second. A layer
# takes 14 to 50 values, and models have a few hundred.
_LIMITS = FILE_LIMITS._replace(values=1 << 16)

# By dtype: the integer type of the same width, and its exponent bits, which are all set in a number that is not finite.
_EXPONENTS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


def open_adapter(path: str | Path, config: ModelConfig, *, lenient: bool = False) -> AdapterFile:
    """Opens a safetensors file, or a PEFT folder, and finds out what it changes.

    lenient: leave out tensors that are for no layer of Krea 2. Raises `LoraError` for a file that is damaged or for
    another model, a tensor that is for no layer, a layer whose tensors are incomplete or do not fit it, and one that is
    changed twice.
    """
    path = Path(path)
    if path.is_dir():
        path = path / _PEFT_WEIGHTS
    try:
        file = open_tensor_file(path, _LIMITS)
        if isinstance(file, ShardedFile):  # its shards may lie outside the folders that clients may load from
            raise _error(file, "is the index of several files: a LoRA is one")
        return AdapterFile(file, layer_names(config.transformer), lenient)
    except CheckpointError as error:
        raise LoraError(error.message) from None


class AdapterFile:
    """Holds an open file and its `changes` by layer. skipped: keys that were left out. family: its kinds, such as "LoRA
    and DoRA", for people. modules: the number of layers that it changes."""

    def __init__(self, file: TensorFile, names: LayerNames, lenient: bool) -> None:
        self.file = file
        self.path = file.path
        groups, self.skipped = _group(file, names, lenient)
        alphas = _Alphas(file, groups)
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
        kinds = Counter("DoRA" if "magnitude" in c.tensors else c.family.value for c in self.changes.values())
        self.family = " and ".join(kind for kind, _ in kinds.most_common())
        self.modules = len(self.changes)

    def bytes_on_rank(self, tp: int, bytes_per_element: int) -> int:
        """Returns the bytes that each of `tp` ranks holds of it."""
        return bytes_per_element * sum(change.elements_on_rank(tp) for change in self.changes.values())

    def check_finite(self) -> None:
        """Reads every number once. Raises `LoraError` if one is NaN or infinite."""
        for name in dict.fromkeys(name for change in self.changes.values() for name in change.tensors.values()):
            header = self.file.headers[name]
            kind, exponent = _EXPONENTS[header.dtype]
            size = math.prod(header.shape) * FLOAT_BYTES[header.dtype]
            for start in range(0, size, _CHECKED_AT_ONCE):
                part = slice(start, min(start + _CHECKED_AT_ONCE, size))
                bits: np.ndarray = self.file.octets(name, part).view(kind)
                if ((bits & exponent) == exponent).any():
                    raise _error(self.file, f"{shorten(name)}: holds values that are not finite")

    def close(self) -> None:
        self.file.close()


_Groups = dict[str, dict[str, str]]  # by path: the tensors' names by role


def _group(file: TensorFile, names: LayerNames, lenient: bool) -> tuple[_Groups, tuple[str, ...]]:
    groups: _Groups = defaultdict(dict)
    unresolved: list[str] = []
    adapters = set()
    for key in file.headers:
        split = split_key(key)
        if split is None or names.resolve(split[0]) is None:
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
    if unresolved and (not groups or not lenient):
        raise _error(file, names.complaint(unresolved, some_resolve=bool(groups)))
    if not groups:
        raise _error(file, "is not a Krea 2 LoRA: it holds no tensors")
    return groups, tuple(unresolved)


def _changes(
    file: TensorFile, names: LayerNames, path: str, tensors: Mapping[str, str], alphas: _Alphas
) -> Iterator[Change]:
    layers = names.resolve(path)
    assert layers is not None
    sources = tuple(names.layers[layer] for layer in layers)
    shapes = {role: file.headers[name].shape for role, name in tensors.items()}
    for name in tensors.values():
        if file.headers[name].dtype not in FLOAT_BYTES:
            raise _error(file, f"{shorten(name)}: is stored as {file.headers[name].dtype}, not as F32, F16 or BF16")
    columns = sources[0].shape[1]
    try:
        family = family_of(shapes, sum(source.shape[0] for source in sources), columns)
    except Misfit as misfit:
        widths = {length for shape in shapes.values() for length in shape}
        hint = ""
        if columns > _QWEN_IMAGE_WIDTH and columns not in widths and _QWEN_IMAGE_WIDTH in widths:
            hint = "; it seems to be a LoRA for Qwen-Image"
        raise _error(file, f"{shorten(path)}: {misfit}{hint}") from None
    rank = rank_of(shapes)
    scale = 1.0 if rank is None else alphas.scale(path, tensors.get("alpha"), rank)
    first = Change(file, layers[0], sources[0], family, tensors, shapes, sources, slice(0, sources[0].shape[0]), scale)
    yield from first.of_stacked()


class _Alphas:
    """Finds what each layer's change is multiplied by, in the first place that says it: the layer's own alpha, the
    header, PEFT's config beside the file. unused: layers of PEFT's alpha_pattern that the file does not have."""

    def __init__(self, file: TensorFile, groups: _Groups) -> None:
        self._file = file
        self._fields, self._origin = _peft_fields(file, groups)
        patterns = self._fields.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise _error(file, f"alpha_pattern in {self._origin} is not an object")
        if len(patterns) > len(groups):  # one of them would be unused, which takes long to find out
            raise _error(file, f"alpha_pattern in {self._origin} has {len(patterns)} keys for {len(groups)} layers")
        self._pattern = {strip_prefixes(key): self._number("alpha_pattern", alpha) for key, alpha in patterns.items()}
        self.unused = set(self._pattern)

    def scale(self, path: str, alpha_tensor: str | None, rank: int) -> float:
        stripped = strip_prefixes(path)
        pattern = next((key for key in self._pattern if stripped == key or stripped.endswith(f".{key}")), None)
        if pattern is not None:
            self.unused.discard(pattern)
        if alpha_tensor is not None:
            return self._read(alpha_tensor) / rank
        alpha = self._pattern[pattern] if pattern is not None else self._fields.get("lora_alpha")
        alpha = rank if alpha is None else self._number("lora_alpha", alpha)
        return alpha / (math.sqrt(rank) if self._fields.get("use_rslora") is True else rank)

    def _number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
            raise _error(self._file, f"{key} in {self._origin} is {shorten(repr(value))}, not a number")
        return float(value)

    def _read(self, name: str) -> float:
        kind, _ = _EXPONENTS[self._file.headers[name].dtype]
        bits: np.ndarray = self._file.octets(name).view(kind)
        if self._file.headers[name].dtype == "BF16":  # the upper half of a float32
            kind, bits = "<u4", bits.astype("<u4") << 16
        number = float(bits.view(kind.replace("u", "f"))[0])
        if not math.isfinite(number):
            raise _error(self._file, f"{shorten(name)}: is not finite")
        return number


def _peft_fields(file: TensorFile, groups: _Groups) -> tuple[Mapping[str, Any], str]:
    """Returns PEFT's config of an adapter, from the header or the file beside it, and where it is from."""
    written = file.metadata.get("lora_adapter_metadata")
    if written is not None:
        try:
            fields, why = read_json(written), ""
        except ValueError as error:
            fields, why = None, f": {error}"
        if not isinstance(fields, dict):
            raise _error(file, f"lora_adapter_metadata in the header is not a json object{why}")
        prefix = "transformer."
        return {key.removeprefix(prefix): value for key, value in fields.items()}, "the header's lora_adapter_metadata"
    # a config that belongs to another file of the folder must not change this one's strength
    config = file.path.parent / _PEFT_CONFIG
    is_from_peft = file.path.name == _PEFT_WEIGHTS or any(path.startswith("base_model.model.") for path in groups)
    if is_from_peft and config.exists():
        return read_json_object(config), _PEFT_CONFIG
    return {}, ""


def _error(file: TensorFile, message: str) -> LoraError:
    return LoraError(printable(f"{file.path}: {message}"))
