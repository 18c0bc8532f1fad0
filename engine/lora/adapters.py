"""A rank's loaded adapters, and which of them each forward applies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from engine.checkpoint.layouts.tensors import COLUMNS, ROWS, Source, transformer_sources
from engine.config.model_config import ModelConfig
from engine.lora.deltas import Dense, Shard, norm_factors, read_delta, read_vector
from engine.lora.families import Change, Family
from engine.lora.files import AdapterFile, open_adapter
from engine.lora.side_path import LayerAdapter, Piece, Runs, SidePath
from engine.parallel.group import Group, LocalGroup
from engine.parallel.linear import Linear, ParallelMatrix
from engine.step import Adapter

# Ids of adapters with their strengths, none zero, in order: what a result depends on.
Loras = tuple[tuple[int, float], ...]

# How the layers' names begin that make text features and time modulation, which are kept for jobs with the same
# adapters there, and the others'.
TEXT = ("text_fusion.", "txt_in.")
TIME = ("time_embed.", "time_mod_proj")
DENOISING = ("img_in", "transformer_blocks.", "final_layer.")
_ROWS = {"img_in": "images", "final_layer.linear": "last"}  # that a layer sees, where they are not the blocks'


class Adapters:
    """Adapters that jobs may name. An adapter that is not in force costs its memory and nothing else."""

    def __init__(
        self, transformer: nn.Module, config: ModelConfig, group: Group, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._transformer, self._config, self._group = transformer, config, group
        self._device, self._dtype = device, dtype
        self._in_force: dict[str, Runs] = {}  # by the kind of rows
        self._layers: dict[int, tuple[str, ...]] = {}  # those that each adapter changes
        self._side_paths: dict[str, SidePath] = {}  # by the module that each is beside

    @property
    def bytes(self) -> int:
        """What this rank holds of all adapters."""
        adapters = [adapter for path in self._side_paths.values() for adapter in path.adapters.values()]
        return sum(t.numel() * t.element_size() for adapter in adapters for t in adapter.tensors())

    def load(self, adapter: Adapter) -> None:
        """Read this rank's share of a file to the device. Raises `LoraError`. A collective, where a file has DoRA."""
        file = open_adapter(Path(adapter.path), self._config, lenient=adapter.lenient)
        by_module: dict[str, list[Change]] = defaultdict(list)
        for change in file.changes.values():
            by_module[change.source.parameter.removesuffix(".weight")].append(change)
        with torch.inference_mode():
            for name, changes in by_module.items():
                module = self._transformer.get_submodule(name)
                assert isinstance(module, Linear | ParallelMatrix)
                pieces = _read_pieces(file, name, changes, module, self._group, self._config, self._device)
                if name not in self._side_paths:
                    bias = module.bias if isinstance(module, Linear) else None
                    self._side_paths[name] = SidePath(self._in_force, _ROWS.get(name, "blocks"), bias)
                    module.side_path = self._side_paths[name]
                self._side_paths[name].adapters[adapter.adapter_id] = LayerAdapter(pieces, self._dtype)
        self._layers[adapter.adapter_id] = tuple(file.changes)
        file.close()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # prompts are encoded in another stream than this one

    def unload(self, adapter_id: int) -> None:
        """Forget an adapter that no job in flight names."""
        del self._layers[adapter_id]
        for name, side_path in list(self._side_paths.items()):
            side_path.adapters.pop(adapter_id, None)
            if not side_path.adapters:
                del self._side_paths[name]
                module = self._transformer.get_submodule(name)
                assert isinstance(module, Linear | ParallelMatrix)
                module.side_path = None

    def of(self, loras: Sequence[tuple[int, float]], prefixes: tuple[str, ...]) -> Loras:
        """Those of a job's adapters that change anything in the layers whose names begin so."""
        strengths: dict[int, float] = defaultdict(float)
        for adapter_id, strength in loras:
            if any(layer.startswith(prefixes) for layer in self._layers[adapter_id]):
                strengths[adapter_id] += strength
        return tuple(sorted((key, strength) for key, strength in strengths.items() if strength != 0))

    @contextmanager
    def everywhere(self, loras: Loras) -> Iterator[None]:
        """Apply these in all rows of a forward."""
        with self._applied({"blocks": {key: [(slice(None), strength)] for key, strength in loras}}):
            yield

    @contextmanager
    def by_row(
        self,
        images: Sequence[tuple[Loras, int]],
        blocks: Sequence[tuple[Loras, int]],
        last: Sequence[tuple[Loras, int]],
    ) -> Iterator[None]:
        """Apply each of these in so many rows of what `img_in` sees, the blocks' matrices, and the final layer's."""
        with self._applied({"images": _runs(images), "blocks": _runs(blocks), "last": _runs(last)}):
            yield

    @contextmanager
    def _applied(self, in_force: dict[str, Runs]) -> Iterator[None]:
        self._in_force |= in_force
        try:
            yield
        finally:
            self._in_force.clear()


def _runs(parts: Sequence[tuple[Loras, int]]) -> Runs:
    """Neighbours with the same strength are one run, as the segments of a guided image are."""
    runs: dict[int, list[tuple[slice, float]]] = defaultdict(list)
    start = 0
    for loras, length in parts:
        for key, strength in loras:
            last = runs[key][-1] if runs[key] else None
            if last is not None and last == (slice(last[0].start, start), strength):
                runs[key][-1] = slice(last[0].start, start + length), strength
            else:
                runs[key].append((slice(start, start + length), strength))
        start += length
    return runs


def _read_pieces(
    file: AdapterFile,
    name: str,
    changes: Sequence[Change],
    module: Linear | ParallelMatrix,
    group: Group,
    config: ModelConfig,
    device: torch.device,
) -> list[Piece]:
    """A rank's share of what a file does to the matrices that are stacked in one module."""
    starts = _row_starts(name, group.size, config)
    pieces = []
    for change in changes:
        bounds = change.source.shard_bounds(group.rank, group.size)
        shard = Shard(*bounds)
        start = starts[change.layer]
        piece = Piece(
            slice(start, start + shard.rows.stop - shard.rows.start), read_delta(file.file, change, shard, device)
        )
        if change.family is Family.REPLACEMENT:
            piece.gain = -1.0
        if "magnitude" in change.tensors:
            # only these rows, since float32 is much; and the layer may wait in host memory for its use
            weight = module.dequantize(piece.rows).to(device)
            _apply_magnitude(piece, weight, file, change, shard, group, device)
        # where columns are split, the ranks' outputs are summed up
        if "diff_b" in change.tensors and (change.source.split != COLUMNS or group.rank == 0):
            piece.bias = read_vector(file.file, change, "diff_b", shard.rows, device)
        pieces.append(piece)
    return pieces


def _apply_magnitude(
    piece: Piece,
    weight: torch.Tensor,
    file: AdapterFile,
    change: Change,
    shard: Shard,
    group: Group,
    device: torch.device,
) -> None:
    """Make a low-rank change DoRA's: W + ΔW, whose rows or columns are given new norms, less W."""
    assert piece.delta is not None
    changed = weight + piece.delta.dense()
    alone = LocalGroup()
    if change.by_column:
        magnitude = read_vector(file.file, change, "magnitude", shard.columns, device, dimension=1)
        factors = norm_factors(changed, magnitude, 0, group if change.source.split == ROWS else alone)
        piece.delta = Dense(changed.mul_(factors).sub_(weight))  # factors on x would need a second product with W
    else:
        magnitude = read_vector(file.file, change, "magnitude", shard.rows, device)
        factors = norm_factors(changed, magnitude, 1, group if change.source.split == COLUMNS else alone)
        piece.delta.scale_rows(factors)
        piece.gain = factors - 1


def _row_starts(module: str, size: int, config: ModelConfig) -> dict[str, int]:
    """Where each of the matrices that are stacked in a module begins in a rank's parameter."""
    starts, start = {}, 0
    stacked: list[Source] = [s for s in transformer_sources(config.transformer) if s.parameter == f"{module}.weight"]
    for source in stacked:
        starts[source.name.removesuffix(".weight")] = start
        start += source.shard_shape(size)[0]
    return starts
