"""Adapters of what is no matrix: norms' weights and modulation tables, which are changed themselves, since no output
could be corrected for them. Ranks hold them whole and in float32, and so their differences."""

from __future__ import annotations

from typing import Protocol

import torch

from engine.lora.deltas import read_delta, read_vector
from engine.lora.families import Change, Family, product_shape
from engine.lora.side_path import InForce, Loras

# Segments of a batch for which values are kept until others come: up to 90 MB at the real size, which no adapter's
# `bytes` count and what plans leave to small things has room for (`reserve_bytes`, `MemoryPlan`). A step of more takes
# so long that it does not matter how long it takes to launch.
_KEPT_SEGMENTS = 16


class Owner(Protocol):
    """A module with a vector that adapters may change, as `engine.model` has them."""

    side_vector: SideVector | None


class SideVector:
    """Gives a norm's weight or a modulation table as the adapters in force make it."""

    def __init__(self, in_force: InForce, parameter: torch.Tensor) -> None:
        self._in_force, self._parameter = in_force, parameter
        self._differences: dict[int, torch.Tensor] = {}  # by adapter
        self._kept: tuple[tuple[Loras, ...], torch.Tensor] | None = None  # the latest value, and what it is for

    def __call__(self) -> torch.Tensor | None:
        """Returns what is in force, of the parameter's shape, float32; where it differs among the segments of a batch,
        with a dimension for these in front; None where it is the parameter itself."""
        known = self._differences
        segments = tuple(tuple(lora for lora in loras if lora[0] in known) for loras in self._in_force.segments)
        if not any(segments):
            return None
        distinct = set(segments)
        if len(distinct) == 1:
            segments = segments[:1]
        if self._kept is not None and self._kept[0] == segments:
            return self._kept[1]
        values = {loras: self._changed(loras) for loras in distinct}
        value = values[segments[0]] if len(segments) == 1 else torch.stack([values[loras] for loras in segments])
        self._kept = (segments, value) if len(segments) <= _KEPT_SEGMENTS else None
        return value

    @property
    def bytes(self) -> int:
        """Bytes of the adapters' differences."""
        return sum(difference.nbytes for difference in self._differences.values())

    def add(self, adapter_id: int, difference: torch.Tensor) -> None:
        """Takes what an adapter adds at strength 1: of the parameter's shape, float32."""
        self._differences[adapter_id] = difference

    def remove(self, adapter_id: int) -> bool:
        """Forgets an adapter, if it is one of these. Returns whether there is none left."""
        self._differences.pop(adapter_id, None)
        self._kept = None  # another may come under its id
        return not self._differences

    def _changed(self, loras: Loras) -> torch.Tensor:
        value = self._parameter
        for adapter_id, strength in loras:
            value = torch.add(value, self._differences[adapter_id], alpha=strength)
        return value


def read_difference(change: Change, base: torch.Tensor) -> torch.Tensor:
    """Reads what a change adds at strength 1 to a norm's weight, (width,), or a modulation table, (rows, width), whose
    values in the checkpoint are `base`: of its shape and on its device, float32."""
    role = {Family.DIFFERENCE: "diff", Family.REPLACEMENT: "set_weight"}.get(change.family)
    if role is not None:
        values = read_vector(change, role, slice(0, change.shapes[role][0]), base.device).view(base.shape)
        return values - base if change.family is Family.REPLACEMENT else values
    rows, columns = product_shape(change)
    delta = read_delta(change, (slice(0, rows), slice(0, columns)), base.device)
    assert delta is not None
    return delta.dense().reshape(base.shape)
