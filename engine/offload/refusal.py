"""Refuses, before a byte is loaded, a model that is larger than what a rank's device or its machine has left."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.checkpoint.weight_format import Weights
from engine.config.engine_config import EngineConfig
from engine.device.devices import free_bytes, multiplies_fp8
from engine.device.host_memory import HostMemory
from engine.errors import LaunchError
from engine.planning.memory_plan import MemoryPlan, shown
from engine.planning.room import Room, refuse


def find_room(device: torch.device, sharing: int, local_ranks: int, *, is_split: bool) -> Room:
    """Look what there is for a rank, one of `sharing` on its device, and of `local_ranks` on its machine."""
    host = HostMemory.read()
    free = None
    if device.type == "cuda":
        free = free_bytes(device) or 0
        if host is not None and getattr(torch.cuda.get_device_properties(device), "is_integrated", False):
            free = max(free, host.available)  # it is the same memory, of which CUDA does not see what holds files
        free //= sharing
    return Room(
        device=free,
        host=None if host is None else host.available,
        swap=0 if host is None else host.swap,
        total=0 if host is None else host.total,
        ranks=local_ranks,
        gpus=torch.cuda.device_count() if free is not None else 0,
        multiplies_fp8=multiplies_fp8(device, torch.bfloat16),
        is_split=is_split,
    )


def check_room(
    plan: MemoryPlan,
    weights: Weights,
    engine: EngineConfig,
    room: Room,
    device: torch.device,
    *,
    rank: int,
    ranks: int,
    share: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Raise `LaunchError` on all `ranks` if one of them has less room than its weights take.

    share: sums over the ranks, in place. No rank goes on to load before all have looked, or a later one would miss what
    an earlier one has taken.
    """
    shortage = room.shortage(plan, engine)
    table = torch.zeros((ranks, 2), dtype=torch.float64, device=device)  # bytes that are needed, and that there are
    if shortage is not None:
        table[rank] = torch.tensor(shortage, dtype=torch.float64)
    table = share(table).cpu()
    if shortage is not None:
        raise refuse(shortage, plan, weights, engine, room)
    for other, (needed, available) in enumerate(table.tolist()):
        if needed:
            raise LaunchError(
                f"rank {other} needs {shown(int(needed))} for weights, and its machine has {shown(int(available))}: "
                "nothing was loaded"
            )
