"""Groups for measuring: one that counts what a rank sends, and one whose other ranks are not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from engine.config.degrees import Degrees
from engine.parallel.group import Group, LocalGroup
from engine.parallel.mesh import Mesh
from engine.planning.work_division import Traffic


@dataclass
class Counter:
    """What the groups of a rank have sent so far."""

    sent: Traffic = field(default_factory=Traffic)


class CountingGroup(Group):
    """A group that adds what its rank sends to a counter, as `engine.planning.work_division.sent_in_step` counts it."""

    def __init__(self, group: Group, counter: Counter) -> None:
        self.rank, self.size = group.rank, group.size
        self._group, self._counter = group, counter

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        self._count(2 * (self.size - 1) * tensor.nbytes // self.size)
        return self._group.all_reduce(tensor)

    def reduce_scatter(self, tensor: torch.Tensor) -> torch.Tensor:
        self._count((self.size - 1) * tensor.nbytes // self.size)
        return self._group.reduce_scatter(tensor)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        self._count((self.size - 1) * tensor.nbytes)
        return self._group.all_gather(tensor)

    def all_gather_each(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self._count((self.size - 1) * sum(tensor.nbytes for tensor in tensors))
        return self._group.all_gather_each(tensors)

    def all_to_all(self, tensor: torch.Tensor, sent: Sequence[int], received: Sequence[int]) -> torch.Tensor:
        self._count_exchange(tensor, sent)
        return self._group.all_to_all(tensor, sent, received)

    def begin_all_to_all(
        self, tensor: torch.Tensor, sent: Sequence[int], received: Sequence[int]
    ) -> Callable[[], torch.Tensor]:
        self._count_exchange(tensor, sent)
        return self._group.begin_all_to_all(tensor, sent, received)

    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        self._count((self.size - 1) * tensor.nbytes if self.rank == source else 0)
        return self._group.broadcast(tensor, source)

    def close(self) -> None:
        self._group.close()

    def _count_exchange(self, tensor: torch.Tensor, sent: Sequence[int]) -> None:
        self._count((sum(sent) - sent[self.rank]) * (tensor.nbytes // max(1, tensor.shape[0])))

    def _count(self, count: int) -> None:
        self._counter.sent += Traffic(count, 1)


def counting(mesh: Mesh) -> tuple[Mesh, Counter]:
    """The same mesh, whose groups of more than one rank count."""
    counter = Counter()
    groups = (mesh.world, mesh.tp, mesh.sp, mesh.cfg, mesh.wide)
    counted = {group: CountingGroup(group, counter) if group.size > 1 else group for group in groups}
    world, tp, sp, cfg, wide = (counted[group] for group in groups)
    return Mesh(world, tp, sp, cfg, wide, mesh.sharing), counter


class AbsentGroup(Group):
    """The first of `size` ranks, alone: it gets back tensors of the right shapes, made of its own, as though all had
    the same. What that copies on the device counts as computing."""

    rank = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mul_(self.size)

    def reduce_scatter(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[: tensor.shape[0] // self.size]

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor] * self.size)

    def all_to_all(self, tensor: torch.Tensor, sent: Sequence[int], received: Sequence[int]) -> torch.Tensor:
        rows = sum(received)
        return tensor[:rows] if rows <= tensor.shape[0] else torch.cat([tensor, tensor[: rows - tensor.shape[0]]])

    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        return tensor


def lone_mesh(degrees: Degrees) -> Mesh:
    """Make the mesh of rank 0 of `degrees`, whose other ranks are not there."""
    return Mesh.build(0, degrees, lambda ranks: AbsentGroup(len(ranks)) if 0 in ranks else LocalGroup())
