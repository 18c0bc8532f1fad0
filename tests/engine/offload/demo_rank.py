"""A rank of the demo with weights in host memory, and all that it may leave there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER, VAE, EngineConfig
from engine.device.timing import DeviceTime, record_time
from engine.offload import host_buffers
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from engine.step import Job, Step

CPU = torch.device("cpu")
COMBINATIONS = [
    (DIT_LAYERWISE,),
    (TEXT_ENCODER,),
    (VAE,),
    (DIT,),
    (DIT, TEXT_ENCODER, VAE),
    (DIT_LAYERWISE, TEXT_ENCODER, VAE),
]


def make_rank(folder: str = "demo", **options: Any) -> Rank:
    return Rank(EngineConfig(model=folder, **options), Mesh(), CPU)


def draw(rank: Rank, steps: int = 2) -> None:
    """One image, from its prompt to its pixels."""
    job = Job(0, tuple(range(34 + 20)), None, 64, 64, steps, 0.0, None, 0)
    for number in range(steps):
        rank.execute(Step(number, start=() if number else (job,), denoise=(0,))).wait()
    rank.execute(Step(steps, decode=(0,))).wait()
    rank.close()


@dataclass(frozen=True)
class Span:
    """When a block of the DiT was copied, or computed with. See `seconds_between`."""

    block: int
    began: DeviceTime
    ended: DeviceTime


class Timeline:
    """The copies and computations of a rank's blocks, from before the rank is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
        self._device = device
        self._copies: list[tuple[int, DeviceTime, DeviceTime]] = []  # from an address
        copy_bytes = host_buffers.copy_bytes

        def copy(target: torch.Tensor, source: torch.Tensor) -> None:
            began = record_time(device)
            copy_bytes(target, source)
            self._copies.append((source.data_ptr(), began, record_time(device)))

        monkeypatch.setattr(host_buffers, "copy_bytes", copy)

    def watch(self, rank: Rank) -> None:
        self.computes: list[Span] = []
        self._stream = rank.model.offload.streams["transformer"]
        visit = rank.model.transformer.visit

        def watched(blocks: Sequence[Any], part: range, ahead: int | None) -> Iterator[Any]:
            for index, block in zip(part, visit(blocks, part, ahead), strict=True):
                began = record_time(self._device)
                yield block
                self.computes.append(Span(index, began, record_time(self._device)))

        rank.model.transformer.visit = watched  # type: ignore[assignment]

    @property
    def copies(self) -> list[Span]:
        """Of the blocks that were computed with."""
        blocks = {bucket.host.data_ptr(): block for block, bucket in self._stream._buckets.items()}
        return [Span(blocks[at], *times) for at, *times in self._copies if at in blocks][: len(self.computes)]
