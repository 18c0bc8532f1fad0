"""A first word on every group, before anything is loaded: do the other ranks answer, and with the right numbers?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from engine.config.degrees import EXCHANGING, Degrees
from engine.errors import Krea2Error, LaunchError
from engine.parallel.group import Group
from engine.parallel.mesh import Mesh

T = TypeVar("T")
Begin = Callable[[str], None]

CHECK_S = 60.0  # for ranks that have all come to connect and to try every operation
_WIDTH = 4  # numbers in a row
_ADVICE = {
    "nccl": (
        "; it may be that the GPUs cannot reach each other's memory: try NCCL_P2P_DISABLE=1, then NCCL_NVLS_ENABLE=0, "
        "and in a container more shared memory (docker run --shm-size 1g); NCCL_DEBUG=INFO says more"
    ),
    "gloo": "; GLOO_SOCKET_IFNAME is the network interface by which ranks reach each other",
}


def within(seconds: float, backend: str, work: Callable[[Begin], T]) -> T:
    """Run `work`, which says what it begins. Raises `LaunchError` with that if it fails or takes longer.

    It runs in a thread, which is left to itself if it hangs: nothing interrupts a library's call, and the library's own
    time limit ends the process before anybody is told why.
    """
    outcome: Future[T] = Future()
    begun = ["connecting"]

    def run() -> None:
        try:
            outcome.set_result(work(begun.append))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="connect", daemon=True).start()
    try:
        return outcome.result(seconds)
    except Krea2Error:
        raise
    except Exception as error:
        what, advice = f"{begun[-1]} over {backend}", _ADVICE[backend]
        if not outcome.done():
            raise LaunchError(f"{what} was not done within {seconds:g} s{advice}") from None
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise LaunchError(f"{what} failed: {lines[0]}{advice}") from error


def try_groups(mesh: Mesh, degrees: Degrees, device: torch.device, begin: Begin) -> None:
    """Try every operation on every group of a rank, in the same order on all ranks; but all_to_all only where ranks do
    exchange rows: with the first one NCCL takes half a gigabyte for each of a group's peers (see
    `step_memory.communication_bytes`). Raises `LaunchError` where a result is wrong."""
    for ranks, names in degrees.communicators(mesh.world.rank).items():
        who = f"{names[0]} group, ranks {', '.join(map(str, ranks))},"
        _try_operations(getattr(mesh, names[0]), who, device, begin, exchanges=not EXCHANGING.isdisjoint(names))


def _try_operations(group: Group, who: str, device: torch.device, begin: Begin, *, exchanges: bool) -> None:
    """Of rows (ranks, 4) float32: row i of rank r is 10 r + i."""
    size, rank = group.size, group.rank
    every = [[10 * source + row for row in range(size)] for source in range(size)]
    total = [sum(column) for column in zip(*every, strict=True)]
    ones = [1] * size
    operations: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], list[int]]] = {
        "all_reduce": (group.all_reduce, total),
        "reduce_scatter": (group.reduce_scatter, [total[rank]]),
        "all_gather": (group.all_gather, [number for rows in every for number in rows]),
        "all_to_all": (lambda mine: group.all_to_all(mine, ones, ones), [rows[rank] for rows in every]),
        "broadcast": (lambda mine: group.broadcast(mine, size - 1), every[-1]),
    }
    if not exchanges:
        del operations["all_to_all"]
    for name, (operation, expected) in operations.items():
        what = f"the first {name} of the {who}"
        begin(what)
        mine = torch.tensor(every[rank], dtype=torch.float32, device=device)[:, None].repeat(1, _WIDTH)
        found = operation(mine).tolist()  # waits for it
        if found != [[float(number)] * _WIDTH for number in expected]:
            raise LaunchError(f"{what} gave wrong numbers: {found} where each row should be one of {expected}")
