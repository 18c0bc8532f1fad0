"""Adapters merged into weights as these are read, for a set that never changes: no side path and no extra memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.checkpoint.files.stored import Bounds, StoredTensor, whole
from engine.checkpoint.layouts.tensors import Source
from engine.checkpoint.weight_format import Weights
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, LoraError
from engine.lora.deltas import norm_factors, read_delta, read_vector
from engine.lora.families import Change, Family
from engine.lora.files import open_adapter
from engine.parallel.group import LocalGroup

_CPU = torch.device("cpu")


class MergedWeights:
    """Adds adapters to the transformer's weights in float32, before anything is rounded or quantised. See `Weights`.

    Each rank reads the slices that it keeps, but for DoRA, whose norms are those of whole matrices.
    """

    def __init__(self, weights: Weights, engine: EngineConfig) -> None:
        """Opens the adapters. Raises `LoraError`, and `ArgumentError` for a checkpoint that was split for ranks."""
        self._weights = weights
        self.config, self.sources = weights.config, weights.sources
        self._adapters = [
            (open_adapter(path, weights.config, lenient=engine.lora_lenient), strength)
            for path, strength in engine.merge_loras
        ]
        self._dequantizes = engine.quantization == "none"
        names = {source.name for source in self.sources["transformer"]}
        changes = [(adapter, change) for adapter, _ in self._adapters for change in adapter.changes.values()]
        if any(change.source.name not in names for _, change in changes):
            raise ArgumentError(
                "merge_loras needs the whole checkpoint, and this one has been split for ranks: give the one that it "
                "was split from, or load the LoRAs without merging",
                parameter="merge_loras",
            )
        for adapter, change in changes:
            if "diff_b" in change.tensors and f"{change.layer}.bias" not in names:
                raise LoraError(f"{adapter.path}: {change.layer} has no bias that diff_b could be merged into")

    def stored(self, component: str, source: Source) -> StoredTensor:
        """Returns a tensor with what changes it. Raises `ArgumentError` where it would have to be quantised again."""
        stored = self._weights.stored(component, source)
        layer, _, kind = source.name.rpartition(".")
        if component != "transformer" or kind not in ("weight", "bias"):
            return stored
        changes = [
            (change, strength)
            for adapter, strength in self._adapters
            if (change := adapter.changes.get(layer))
            and ("diff_b" in change.tensors if kind == "bias" else change.family is not Family.BIAS)
        ]
        if not changes:
            return stored
        if stored.weight_format != "float" and not self._dequantizes:
            raise ArgumentError(
                f"merge_loras would have to round {source.name}, which the checkpoint stores in 8 bits "
                f"({stored.format}), once more, and lose most of the LoRA: load it without merging, or use "
                "quantization none",
                parameter="merge_loras",
            )
        return _Merged(stored, kind, changes)

    def close(self) -> None:
        self._weights.close()
        for adapter, _ in self._adapters:
            adapter.close()


class _Merged(StoredTensor):
    """Reads a layer's weight or bias in float32, with what adapters change of it, each times its strength."""

    def __init__(self, base: StoredTensor, kind: str, changes: Sequence[tuple[Change, float]]) -> None:
        self.file, self.name, self.shape, self.format = base.file, base.name, base.shape, base.format
        self._base, self._kind, self._changes = base, kind, changes

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
        has_norms = "magnitude" in change.tensors  # which are those of the whole matrix
        read = whole(self.shape) if has_norms else bounds
        delta = read_delta(change, read, _CPU)
        assert delta is not None
        if has_norms:
            changed = self._base.read(read).float() + delta.dense()
            changed *= norm_factors(change, changed, read, LocalGroup())
            return changed[bounds] - base
        return delta.dense() - base if change.family is Family.REPLACEMENT else delta.dense()
