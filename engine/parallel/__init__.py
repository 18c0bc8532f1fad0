"""Process groups and the layers that are split over them."""

from engine.parallel.device import device_name, pick_device
from engine.parallel.distributed import connect_mesh
from engine.parallel.group import Group, LocalGroup
from engine.parallel.linear import ColumnParallelLinear, Linear, RowParallelLinear, ScatteredRows
from engine.parallel.mesh import Mesh, thread_meshes
from engine.parallel.thread_group import thread_groups

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
    "thread_groups",
    "thread_meshes",
]
