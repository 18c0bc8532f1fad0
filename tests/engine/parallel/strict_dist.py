"""A stand-in for `torch.distributed` with NCCL under `DistributedGroup`, its ranks being threads of this process.

Each call asserts what ProcessGroupNCCL checks, or takes for granted, of one rank's tensors; `ThreadGroup`, which
computes it, compares the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engine.config.degrees import Degrees
from engine.parallel.distributed import DistributedGroup
from engine.parallel.group import Group, LocalGroup
from engine.parallel.mesh import Mesh
from tests.engine.parallel.thread_group import thread_meshes


class StrictDist:
    """The functions of `torch.distributed` that a rank calls, for one process group."""

    def __init__(self, group: Group, under_way: list[Work]) -> None:
        """under_way: what the rank has started, in this group or another, and not waited for."""
        self._group = group
        self._under_way = under_way
        self._calls: list[tuple[str, torch.dtype]] | None = None  # the ones that are to be launched together

    @property
    def distributed_c10d(self) -> StrictDist:
        """Where torch has it."""
        return self

    @contextmanager
    def _coalescing_manager(self, group: object) -> Iterator[None]:
        """What is called within it is one operation, of which torch wants the calls to be alike."""
        self._calls = []
        yield
        assert len(set(self._calls)) == 1, "operations that are launched together are of one kind and dtype"
        self._calls = None

    def get_rank(self, group: object) -> int:
        return self._group.rank

    def get_world_size(self, group: object) -> int:
        return self._group.size

    def all_reduce(self, tensor: torch.Tensor, *, group: object, async_op: bool = False) -> Work | None:
        _check(tensor)
        return self._run(tensor, tensor, self._group.all_reduce, async_op)

    def broadcast(self, tensor: torch.Tensor, *, group: object, group_src: int, async_op: bool = False) -> Work | None:
        _check(tensor)
        return self._run(tensor, tensor, lambda given: self._group.broadcast(given, group_src), async_op)

    def all_gather_single(
        self, output: torch.Tensor, given: torch.Tensor, *, group: object, async_op: bool = False
    ) -> Work | None:
        _check(output, given)
        assert output.numel() == given.numel() * self._group.size, "the output is the input times the ranks"
        return self._run(output, given, self._group.all_gather, async_op)

    def reduce_scatter_single(
        self, output: torch.Tensor, given: torch.Tensor, *, group: object, async_op: bool = False
    ) -> Work | None:
        _check(output, given)
        assert given.numel() == output.numel() * self._group.size, "the input is the output times the ranks"
        return self._run(output, given, self._group.reduce_scatter, async_op)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        given: torch.Tensor,
        output_split_sizes: Sequence[int],
        input_split_sizes: Sequence[int],
        *,
        group: object,
        async_op: bool = False,
    ) -> Work | None:
        _check(output, given)
        for tensor, splits in ((output, output_split_sizes), (given, input_split_sizes)):
            assert len(splits) == self._group.size, "a split for each rank"
            assert sum(splits) == tensor.shape[0], "splits add up to the rows"
        assert output.shape[1:] == given.shape[1:], "rows are as long as the ones that are sent"

        def exchange(tensor: torch.Tensor) -> torch.Tensor:
            return self._group.all_to_all(tensor, input_split_sizes, output_split_sizes)

        return self._run(output, given, exchange, async_op)

    def destroy_process_group(self) -> None:
        self._group.close()

    def _run(
        self,
        output: torch.Tensor,
        given: torch.Tensor,
        operation: Callable[[torch.Tensor], torch.Tensor],
        async_op: bool,
    ) -> Work | None:
        if self._calls is not None:
            self._calls.append((operation.__name__, given.dtype))
        assert not self._under_way, "an operation of this rank is on its way that nobody has waited for"
        work = Work(output, given, operation(given), self._under_way)
        if async_op:
            return work
        work.wait()
        return None


class Work:
    """An operation on its way. The output is none before `wait`, and the input must stay as it was until then."""

    def __init__(self, output: torch.Tensor, given: torch.Tensor, result: torch.Tensor, under_way: list[Work]) -> None:
        self._output, self._given, self._result, self._under_way = output, given, result, under_way
        self._sent = given.clone()
        under_way.append(self)
        if output is not given:
            output.fill_(torch.nan if output.is_floating_point() else 0x7F)

    def wait(self) -> None:
        assert torch.equal(_bytes(self._given), _bytes(self._sent)), "the input was overwritten while it was sent"
        self._output.copy_(self._result.view_as(self._output))
        self._under_way.remove(self)


def strict_group(group: Group, under_way: list[Work] | None = None) -> DistributedGroup:
    """A `DistributedGroup` of the ranks of a group of threads. Meanwhile torch's own module is not there for others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "distributed", StrictDist(group, [] if under_way is None else under_way))
        return DistributedGroup(None, staged=False)


def strict_meshes(degrees: Degrees, timeout_s: float, **options: Any) -> list[Mesh]:
    """As `thread_meshes`, whose groups are `DistributedGroup`s."""
    return [_strict(mesh) for mesh in thread_meshes(degrees, timeout_s, **options)]


def _strict(mesh: Mesh) -> Mesh:
    under_way: list[Work] = []
    groups = (mesh.world, mesh.tp, mesh.sp, mesh.cfg, mesh.wide)
    strict = {group: group if isinstance(group, LocalGroup) else strict_group(group, under_way) for group in groups}
    return Mesh(*(strict[group] for group in groups))


def _check(*tensors: torch.Tensor) -> None:
    first = tensors[0]
    for tensor in tensors:
        assert tensor.layout == torch.strided, "tensors must be dense"
        assert tensor.is_contiguous(), "tensors must be contiguous"
        assert tensor.dtype == first.dtype, "output and input must have the same dtype"
        assert tensor.device == first.device, "output and input must be on the same device"


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, which are equal also where they are not numbers."""
    return tensor.flatten().view(torch.uint8)
