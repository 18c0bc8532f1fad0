"""Process groups and the layers that are split over them."""

from engine.parallel.device import pick_device, ranks_on_device
from engine.parallel.distributed import connect_group
from engine.parallel.group import Group, LocalGroup, thread_groups
from engine.parallel.linear import ColumnParallelLinear, Linear, RowParallelLinear

__all__ = [
    "ColumnParallelLinear",
    "Group",
    "Linear",
    "LocalGroup",
    "RowParallelLinear",
    "connect_group",
    "pick_device",
    "ranks_on_device",
    "thread_groups",
]
