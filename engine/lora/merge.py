"""Adapters merged into weights as these are read, for a set that never changes: no side path and no extra memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace

import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.files.stored import FLOAT_BYTES, Bounds, StoredTensor
from engine.checkpoint.layouts.tensors import Source, transformer_sources
from engine.checkpoint.weight_format import Weights
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, LoraError
from engine.lora.deltas import Changed, norm_factors, read_delta, read_vector
from engine.lora.families import Change, Family, is_vector
from engine.lora.files import open_adapter
from engine.lora.vectors import read_difference
from engine.parallel.group import LocalGroup

_CPU = torch.device("cpu")
_INSTEAD = "load it without merging, or use quantization none"


@contextmanager
def merged(checkpoint: CheckpointFiles, engine: EngineConfig) -> Iterator[CheckpointFiles]:
    """Gives the checkpoint with the adapters of `engine.merge_loras` in its transformer, for it to be written anew.

    engine: its quantization is what the transformer is to be written in, and refuses what `MergedWeights` does. Raises
    as that.
    """
    instead = "write it with weights bfloat16, or convert the one that it was made from by rounding"
    weights = MergedWeights(checkpoint, engine, instead=instead)
    transformer = checkpoint.components["transformer"]
    tensors = {source.name: weights.stored("transformer", source) for source in weights.sources["transformer"]}
    result = copy(checkpoint)
    result.components = {**checkpoint.components, "transformer": replace(transformer, tensors=tensors)}
    try:
        yield result
    finally:
        weights.close()


class MergedWeights:
    """Adds adapters to the transformer's weights in float32, before anything is rounded or quantised. See `Weights`.

    Each rank reads the slices that it keeps, but for DoRA, whose norms are those of whole rows, or columns.
    """

    def __init__(self, weights: Weights, engine: EngineConfig, *, instead: str = _INSTEAD) -> None:
        """Opens the adapters. instead: what to do where weights would be rounded twice. Raises `LoraError`, and
        `ArgumentError` for a checkpoint that was split for ranks."""
        self._weights, self._instead = weights, instead
        self.config, self.sources = weights.config, weights.sources
        self._adapters = [
            (open_adapter(path, weights.config, lenient=engine.lora_lenient), strength)
            for path, strength in engine.merge_loras
        ]
        self._quantization = engine.quantization
        names = {source.name for source in self.sources["transformer"]}
        changes = [(adapter, change) for adapter, _ in self._adapters for change in adapter.changes.values()]
        if not names.issuperset(source.name for source in transformer_sources(weights.config.transformer)):
            raise ArgumentError(
                "merge_loras needs the whole checkpoint, and this one has been split for ranks: give the one that it "
                "was split from, or load the LoRAs without merging",
                parameter="merge_loras",
            )
        for adapter, change in changes:
            if "diff_b" in change.tensors and f"{change.layer}.bias" not in names:
                raise LoraError(f"{adapter.path}: {change.layer} has no bias that diff_b could be merged into")

    def stored(self, component: str, source: Source) -> StoredTensor:
        """Returns a tensor with what changes it. Raises `ArgumentError` where it would have to be quantised again: what
        is small beside the format's steps, as most of a LoRA, vanishes in a second rounding to the same numbers."""
        stored = self._weights.stored(component, source)
        if component != "transformer":
            return stored
        kind = "bias" if source.name.endswith(".bias") else "weight"
        layer = source.name.removesuffix(f".{kind}")
        changes = [
            (change, strength)
            for adapter, strength in self._adapters
            if (change := adapter.changes.get(layer))
            and ("diff_b" in change.tensors if kind == "bias" else change.family is not Family.BIAS)
        ]
        if not changes:
            return stored
        # norms and tables are floats in the memory of ranks and in every file that is written
        if not is_vector(source) and _rounds_again(stored, self._quantization):
            raise ArgumentError(
                f"merge_loras would have to round {source.name}, which the checkpoint has as {stored.format}, once "
                f"more, and lose most of the LoRA: {self._instead}",
                parameter="merge_loras",
            )
        return _Merged(stored, kind, changes, lambda source: self._weights.stored(component, source))

    def close(self) -> None:
        self._weights.close()
        for adapter, _ in self._adapters:
            adapter.close()


def _rounds_again(stored: StoredTensor, quantization: str) -> bool:
    if quantization == "none":
        return False
    return stored.weight_format != "float" or (quantization != "auto" and stored.format not in FLOAT_BYTES)


class _Merged(StoredTensor):
    """Reads a weight, bias or table in float32, with what adapters change of it, each times its strength."""

    def __init__(
        self,
        base: StoredTensor,
        kind: str,
        changes: Sequence[tuple[Change, float]],
        unchanged: Callable[[Source], StoredTensor],
    ) -> None:
        """unchanged: gives any weight as it is in the checkpoint."""
        self.file, self.name, self.shape, self.format = base.file, base.name, base.shape, base.format
        self._base, self._kind, self._changes, self._unchanged = base, kind, changes, unchanged

    def size(self, bounds: Bounds) -> int:
        return self._base.size(bounds)

    def read(self, bounds: Bounds) -> torch.Tensor:
        base = self._base.read(bounds).float()
        merged = base.clone()
        for change, strength in self._changes:
            merged.add_(self._difference(change, base, bounds), alpha=strength)
        return merged

    def not_finite(self, bounds: Bounds) -> LoraError | None:
        """Name the adapters that are too much for finite weights."""
        base = self._base.read(bounds).float()
        if not bool(base.isfinite().all()):
            return None
        guilty = [
            (change, strength)
            for change, strength in self._changes
            if not bool((self._difference(change, base, bounds) * strength).bfloat16().isfinite().all())
        ]
        named = [f"{change.file.path} at strength {strength:g}" for change, strength in guilty or self._changes]
        make = "makes" if len(named) == 1 else "make"
        problem = f"{' and '.join(named)} {make} {self.name} overflow"
        return LoraError(f"{problem}: use a smaller strength, or another LoRA")

    def _difference(self, change: Change, base: torch.Tensor, bounds: Bounds) -> torch.Tensor:
        """Returns W' − W of a slice, whose own values are `base`, in its shape."""
        if self._kind == "bias":
            return read_vector(change, "diff_b", bounds[0], _CPU)
        if change.is_vector:
            return read_difference(change, base)
        if "magnitude" in change.tensors:
            return self._renormed(change, bounds) - base
        delta = read_delta(change, bounds, _CPU)
        assert delta is not None
        return delta.dense() - base if change.family is Family.REPLACEMENT else delta.dense()

    def _renormed(self, change: Change, bounds: Bounds) -> torch.Tensor:
        """Returns a slice of W' for DoRA, whose norms are those of whole rows or, of all that is stacked, columns."""
        stacked = change.of_stacked() if change.by_column else [change]
        whole = []
        for each in stacked:
            read = (slice(0, each.source.shape[0]), bounds[1])
            if not change.by_column:
                read = (bounds[0], slice(0, each.source.shape[1]))
            delta = read_delta(each, read, _CPU)
            assert delta is not None
            whole.append(Changed(each, read, self._unchanged(each.source).read(read).float() + delta.dense()))
        own = stacked.index(change)
        renormed = whole[own].values * norm_factors(whole, LocalGroup())[own]
        return renormed[bounds[0]] if change.by_column else renormed[:, bounds[1]]
