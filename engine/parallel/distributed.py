"""Groups over processes: torch.distributed, NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.config.degrees import Degrees
from engine.errors import LaunchError
from engine.parallel.greeting import CHECK_S, Begin, Card, agree, exchange, try_groups, within
from engine.parallel.group import Group, LocalGroup
from engine.parallel.mesh import Mesh

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store


def connect_mesh(
    rank: int,
    degrees: Degrees,
    device: torch.device,
    *,
    store_file: Path | None,
    timeout_s: float,
    share_gpu: bool = False,
) -> Mesh:
    """Meet the other ranks and return this one's groups.

    store_file: where they meet, a path that all can reach and nobody else can write; None: at the address that torchrun
    put into the environment. share_gpu: several ranks may use one GPU, which NCCL refuses; where some do, all talk over
    gloo, staged through the host. timeout_s: ends waiting for each other, now and in every operation; once all have
    come, each operation is tried on every group within `CHECK_S`.

    Raises `LaunchError` if a rank does not come, if machines differ in what must be the same, and if the ranks cannot
    talk; `ArgumentError` for ranks that may not share a GPU and do.
    """
    world_size = degrees.ranks
    if world_size == 1:
        return Mesh()
    import torch.distributed as dist  # 0.2 s that a single rank need not wait for
    from torch.distributed import FileStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    timeout = timedelta(seconds=timeout_s)
    if store_file is not None:
        try:
            store: Store = FileStore(str(store_file), world_size)
        except dist.DistStoreError as error:
            raise LaunchError(f"{store_file}: cannot be written: {error}") from None
    else:
        store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    store.set_timeout(timeout)
    nccl, sharing = agree(exchange(store, Card.of(rank, device), world_size, timeout_s), share_gpu=share_gpu)
    backend, on_gpu = "nccl" if nccl else "gloo", device.type == "cuda"
    make = partial(DistributedGroup, staged=on_gpu and not nccl)

    def group_of(ranks: tuple[int, ...]) -> Group:
        if len(ranks) == world_size:
            return make(None)
        # Not a DeviceMesh, whose groups have the backend's own timeout. All ranks make all groups, as torch wants it.
        handle = dist.new_group(list(ranks), timeout=timeout)
        return make(handle) if rank in ranks else LocalGroup()

    def connect(begin: Begin) -> Mesh:
        if on_gpu:
            torch.cuda.set_device(device)  # each thread has a current one of its own
        gpu = device if nccl else None
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout, device_id=gpu)
        mesh = replace(Mesh.build(rank, degrees, group_of), sharing=sharing if on_gpu else None)
        try_groups(mesh, degrees, device, begin)
        return mesh

    return within(min(CHECK_S, timeout_s), backend, connect)


class DistributedGroup(Group):
    """The ranks of a process group, None being all. staged: tensors on a GPU go through the host."""

    def __init__(self, handle: ProcessGroup | None, *, staged: bool) -> None:
        import torch.distributed as dist

        self._dist, self._handle, self._staged = dist, handle, staged
        self.rank, self.size = dist.get_rank(handle), dist.get_world_size(handle)
        # into one launch, by NCCL; torch has no public name for it
        self._coalesced = dist.distributed_c10d._coalescing_manager
        # torch 2.13 renamed these two
        self._reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        self._all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._in_place(self._dist.all_reduce, tensor)

    def reduce_scatter(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._into(tensor.shape[0] // self.size, self._reduce_scatter, tensor)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._into(tensor.shape[0] * self.size, self._all_gather, tensor)

    def all_gather_each(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        sources = [tensor.cpu() if self._staged else tensor.contiguous() for tensor in tensors]
        results = [source.new_empty((source.shape[0] * self.size, *source.shape[1:])) for source in sources]
        with self._coalesced(self._handle):
            for result, source in zip(results, sources, strict=True):
                self._all_gather(result, source, group=self._handle)
        return [result.to(tensor.device) for result, tensor in zip(results, tensors, strict=True)]

    def all_to_all(self, tensor: torch.Tensor, sent: Sequence[int], received: Sequence[int]) -> torch.Tensor:
        return self._into(sum(received), self._dist.all_to_all_single, tensor, list(received), list(sent))

    def begin_all_to_all(
        self, tensor: torch.Tensor, sent: Sequence[int], received: Sequence[int]
    ) -> Callable[[], torch.Tensor]:
        if self._staged:
            return super().begin_all_to_all(tensor, sent, received)
        source = tensor.contiguous()
        result = source.new_empty((sum(received), *source.shape[1:]))
        splits = list(received), list(sent)
        work = self._dist.all_to_all_single(result, source, *splits, group=self._handle, async_op=True)

        def wait() -> torch.Tensor:
            work.wait()  # with NCCL the stream that computes waits, not the host
            return result

        return wait

    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        return self._in_place(self._dist.broadcast, tensor, group_src=source)

    def close(self) -> None:
        if self._handle is None:  # the others go with it
            self._dist.destroy_process_group()

    def _in_place(self, operation: Callable[..., object], tensor: torch.Tensor, **options: int) -> torch.Tensor:
        """Run an operation that overwrites its tensor; returns `tensor`."""
        staged = tensor.cpu() if self._staged else tensor.contiguous()
        operation(staged, group=self._handle, **options)
        return tensor if staged is tensor else tensor.copy_(staged)

    def _into(
        self, rows: int, operation: Callable[..., object], tensor: torch.Tensor, *splits: list[int]
    ) -> torch.Tensor:
        """Run an operation that writes to a new tensor: (…, width) → (rows, width)."""
        source = tensor.cpu() if self._staged else tensor.contiguous()
        result = source.new_empty((rows, *source.shape[1:]))
        operation(result, source, *splits, group=self._handle)
        return result.to(tensor.device)
