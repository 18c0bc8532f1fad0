"""Process groups and the layers that are split over them."""

from engine.parallel.device import device_name, pick_device, ranks_on_device
from engine.parallel.distributed import connect_mesh
from engine.parallel.group import Group, LocalGroup, thread_groups
from engine.parallel.linear import ColumnParallelLinear, Linear, RowParallelLinear, ScatteredRows
from engine.parallel.mesh import Mesh, thread_meshes

__all__ = [
    "ColumnParallelLinear",
    "Group",
    "Linear",
    "LocalGroup",
    "Mesh",
    "RowParallelLinear",
    "ScatteredRows",
    "connect_mesh",
    "device_name",
    "pick_device",
    "ranks_on_device",
    "thread_groups",
    "thread_meshes",
]
