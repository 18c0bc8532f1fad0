"""A rank's loaded adapters, and which of them each forward applies, in which rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from typing import cast

import torch
from torch import nn

from engine.checkpoint.layouts.tensors import COLUMNS, sources_by_parameter, transformer_sources
from engine.config.model_config import ModelConfig
from engine.lora.deltas import Changed, Dense, norm_factors, read_delta, read_vector
from engine.lora.families import Change, Family
from engine.lora.files import open_adapter
from engine.lora.side_path import InForce, LayerAdapter, Loras, Piece, Runs, SidePath
from engine.lora.vectors import Owner, SideVector, read_difference
from engine.parallel.group import Group
from engine.parallel.linear import Linear, ParallelMatrix
from engine.step import Adapter

# The adapters of each run of consecutive rows, with the number of its rows; the runs cover all rows in order.
RowLoras = Sequence[tuple[Loras, int]]

# Prefixes of layers' names. Jobs with the same adapters in TEXT or TIME share text features or time modulation.
TEXT = ("text_fusion.", "txt_in.")
TIME = ("time_embed.", "time_mod_proj")
DENOISING = ("img_in", "transformer_blocks.", "final_layer.")
_ROWS = {"img_in": "images", "final_layer.linear": "last"}  # the kind of rows that a layer sees; of all others "blocks"


class Adapters:
    """Loads the adapters that jobs may name. One that no forward applies costs its memory and nothing else."""

    def __init__(
        self, transformer: nn.Module, config: ModelConfig, group: Group, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._transformer, self._config, self._group = transformer, config, group
        self._device, self._dtype = device, dtype
        self._in_force = InForce()
        self._layers: dict[int, tuple[str, ...]] = {}  # by id: what the adapter changes
        self._side_paths: dict[Linear | ParallelMatrix, SidePath] = {}  # by the module that each is beside
        self._side_vectors: dict[str, SideVector] = {}  # by the parameter that each stands in for

    @property
    def bytes(self) -> int:
        """Bytes that this rank holds of all adapters."""
        matrices = sum(adapter.bytes for path in self._side_paths.values() for adapter in path.adapters.values())
        return matrices + sum(vector.bytes for vector in self._side_vectors.values())

    def load(self, adapter: Adapter) -> None:
        """Reads this rank's share of a file to the device, a collective if it has DoRA. Raises `LoraError`."""
        file = open_adapter(adapter.path, self._config, lenient=adapter.lenient)
        by_module: dict[str, list[Change]] = defaultdict(list)
        with torch.inference_mode():
            for change in file.changes.values():
                if change.is_vector:
                    self._load_vector(adapter.adapter_id, change)
                else:
                    by_module[change.source.parameter.removesuffix(".weight")].append(change)
            for name, changes in by_module.items():
                module = self._transformer.get_submodule(name)
                assert isinstance(module, Linear | ParallelMatrix)
                pieces = self._read_pieces(name, changes, module)
                if module not in self._side_paths:
                    bias = module.bias if isinstance(module, Linear) else None
                    side_path = SidePath(self._in_force, _ROWS.get(name, "blocks"), bias)
                    module.side_path = self._side_paths[module] = side_path
                self._side_paths[module].adapters[adapter.adapter_id] = LayerAdapter(pieces, self._dtype)
        self._layers[adapter.adapter_id] = tuple(file.changes)
        file.close()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # prompts are encoded in another stream than this one

    def unload(self, adapter_id: int) -> None:
        """Forgets an adapter that no job in flight names."""
        del self._layers[adapter_id]
        for module, side_path in list(self._side_paths.items()):
            side_path.adapters.pop(adapter_id, None)
            if not side_path.adapters:
                del self._side_paths[module]
                module.side_path = None
        for parameter, side_vector in list(self._side_vectors.items()):
            if side_vector.remove(adapter_id):
                del self._side_vectors[parameter]
                self._owner(parameter).side_vector = None

    def of(self, loras: Sequence[tuple[int, float]], prefixes: tuple[str, ...]) -> Loras:
        """Returns which of a job's adapters change layers with these prefixes, each with the sum of its strengths."""
        strengths: dict[int, float] = defaultdict(float)
        for adapter_id, strength in loras:
            if any(layer.startswith(prefixes) for layer in self._layers[adapter_id]):
                strengths[adapter_id] += strength
        return tuple(sorted((key, strength) for key, strength in strengths.items() if strength != 0))

    def everywhere(self, loras: Loras) -> AbstractContextManager[None]:
        """Applies adapters in all rows of a forward through `TEXT` or `TIME` layers."""
        rows = {"blocks": {key: [(slice(None), strength)] for key, strength in loras}}
        return self._applied(InForce(rows, [loras]))

    def by_row(self, images: RowLoras, blocks: RowLoras, last: RowLoras) -> AbstractContextManager[None]:
        """Applies adapters by rows of the inputs of `img_in`, of the blocks' matrices and of the final layer; the last
        two have a run of rows for each segment. Within another such context it stands in for that one."""
        rows = {"images": _runs(images), "blocks": _runs(blocks), "last": _runs(last)}
        return self._applied(InForce(rows, [loras for loras, _ in blocks]))

    @contextmanager
    def _applied(self, in_force: InForce) -> Iterator[None]:
        before = self._in_force.rows, self._in_force.segments
        self._in_force.rows, self._in_force.segments = in_force.rows, in_force.segments
        try:
            yield
        finally:
            self._in_force.rows, self._in_force.segments = before

    def _owner(self, parameter: str) -> Owner:
        return cast(Owner, self._transformer.get_submodule(parameter.rpartition(".")[0]))

    def _load_vector(self, adapter_id: int, change: Change) -> None:
        name = change.source.parameter
        parameter = self._transformer.get_parameter(name)
        if name not in self._side_vectors:
            self._owner(name).side_vector = self._side_vectors[name] = SideVector(self._in_force, parameter)
        self._side_vectors[name].add(adapter_id, read_difference(change, parameter - change.source.offset))

    def _read_pieces(self, name: str, changes: Sequence[Change], module: Linear | ParallelMatrix) -> list[Piece]:
        """Reads this rank's share of what changes the matrices that are stacked in one module."""
        group, device = self._group, self._device
        stacked = sources_by_parameter(transformer_sources(self._config.transformer))[f"{name}.weight"]
        heights = [source.shard_shape(group.size)[0] for source in stacked]
        ends = zip(stacked, heights, accumulate(heights), strict=True)
        rows = {source.name: slice(end - height, end) for source, height, end in ends}
        pieces = []
        normed: dict[str, list[tuple[Piece, torch.Tensor, Changed]]] = defaultdict(list)  # by the magnitudes' name
        for change in changes:
            bounds = change.source.shard_bounds(group.rank, group.size)
            piece = Piece(rows[change.source.name], read_delta(change, bounds, device))
            if change.family is Family.REPLACEMENT:
                piece.gain = -1.0
            # where columns are split, the ranks' outputs are summed up
            if "diff_b" in change.tensors and (change.source.split != COLUMNS or group.rank == 0):
                piece.bias = read_vector(change, "diff_b", bounds[0], device)
            pieces.append(piece)
            if "magnitude" in change.tensors:
                assert piece.delta is not None
                # only these rows, since float32 is large; an offloaded layer's are in host memory
                weight = module.dequantize(piece.rows).to(device)
                changed = Changed(change, bounds, weight + piece.delta.dense())
                together = normed[change.tensors["magnitude"]]
                together.append((piece, weight, changed))
                if not change.by_column or len(together) == len(change.stacked):
                    _apply_magnitudes(normed.pop(change.tensors["magnitude"]), group)
        assert not normed
        return pieces


def _runs(parts: RowLoras) -> Runs:
    """Returns slices and strengths by adapter: one slice for neighbours with the same strength, as a guided image's."""
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


def _apply_magnitudes(whole: Sequence[tuple[Piece, torch.Tensor, Changed]], group: Group) -> None:
    """Makes the changes of what the file has as one matrix DoRA's: W + ΔW, whose rows or columns are given new norms,
    less W, (rows, columns)."""
    all_factors = norm_factors([changed for _, _, changed in whole], group)
    for (piece, weight, changed), factors in zip(whole, all_factors, strict=True):
        assert piece.delta is not None
        if changed.change.by_column:
            # factors on x would need a second product with W
            piece.delta = Dense(changed.values.mul_(factors).sub_(weight))
        else:
            piece.delta.scale_rows(factors)
            piece.gain = factors.flatten() - 1
