"""The group over processes: torch.distributed, NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch

from engine.parallel.group import Group, LocalGroup


def connect_group(
    rank: int,
    world_size: int,
    device: torch.device,
    *,
    store_file: Path | None,
    timeout_s: float,
    share_gpu: bool = False,
) -> Group:
    """Meet the other ranks and return the group of all of them.

    They meet at `store_file`, a path that all can reach and nobody else can write, or, when it is None, at the
    address that torchrun put into the environment. `share_gpu`: several ranks use one GPU, which NCCL refuses; gloo
    does it, staged through the host. Waiting for each other, now and in every operation, ends after `timeout_s`.
    """
    if world_size == 1:
        return LocalGroup()
    import torch.distributed as dist  # 0.2 s that a single rank need not wait for

    use_nccl = device.type == "cuda" and not share_gpu
    dist.init_process_group(
        "nccl" if use_nccl else "gloo",
        init_method="env://" if store_file is None else store_file.as_uri(),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if use_nccl else None,
    )
    return DistributedGroup(staged=device.type == "cuda" and not use_nccl)


class DistributedGroup(Group):
    """All ranks of the default process group. `staged`: tensors on a GPU go through the host."""

    def __init__(self, *, staged: bool) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._staged = staged
        # torch 2.13 renamed these two
        self._reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        self._all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._in_place(tensor, self._dist.all_reduce)

    def reduce_scatter(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._into(tensor.shape[0] // self.size, tensor, self._reduce_scatter)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._into(tensor.shape[0] * self.size, tensor, self._all_gather)

    def all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._into(tensor.shape[0], tensor, self._dist.all_to_all_single)

    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        return self._in_place(tensor, lambda staged: self._dist.broadcast(staged, source))

    def close(self) -> None:
        self._dist.destroy_process_group()

    def _in_place(self, tensor: torch.Tensor, operation: Callable[[torch.Tensor], object]) -> torch.Tensor:
        staged = tensor.cpu() if self._staged else tensor.contiguous()
        operation(staged)
        return tensor if staged is tensor else tensor.copy_(staged)

    def _into(
        self, rows: int, tensor: torch.Tensor, operation: Callable[[torch.Tensor, torch.Tensor], object]
    ) -> torch.Tensor:
        source = tensor.cpu() if self._staged else tensor.contiguous()
        result = source.new_empty((rows, *source.shape[1:]))
        operation(result, source)
        return result.to(tensor.device)
