"""Before anything is loaded, ranks try each operation, and say in time which one fails."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from engine.config.degrees import Degrees
from engine.errors import LaunchError, RankError
from engine.parallel.greeting import try_groups, within
from engine.parallel.mesh import Mesh
from tests.engine.parallel.test_group import DEADLINE_S, run_processes
from tests.engine.parallel.thread_group import thread_meshes

CPU = torch.device("cpu")
OPERATIONS = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast")

# Rank 1 connects and then does nothing, until rank 0 has said so. Rank 0's second begins when it tries the first
# operation: how long ranks take to connect is the machine's.
SILENT_CHILD = """
import sys, threading, time, torch
from concurrent.futures import Future
from pathlib import Path
from engine.errors import LaunchError
from engine.config.degrees import Degrees
from engine.parallel import distributed, greeting
from engine.parallel.distributed import connect_mesh
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
said, tries, try_groups = folder / "said", threading.Event(), distributed.try_groups
def wait(*_):
    while not said.exists():
        time.sleep(0.05)
def try_and_tell(mesh, degrees, device, begin):
    try_groups(mesh, degrees, device, lambda what: (begin(what), tries.set()))
class Outcome(Future):
    def result(self, timeout):
        assert tries.wait(200)
        return super().result(timeout)
if rank == 1:
    distributed.try_groups, distributed.CHECK_S = wait, 240.0
else:
    distributed.try_groups, distributed.CHECK_S, greeting.Future = try_and_tell, 1.0, Outcome
try:
    connect_mesh(rank, Degrees(2), torch.device("cpu"), store_file=folder / "store", timeout_s=240.0)
except LaunchError as error:
    expected = "the first all_reduce of the world group, ranks 0, 1, over gloo was not done within 1 s; GLOO_SOCKET"
    assert rank == 0 and error.message.startswith(expected), error.message
    said.touch()
else:
    assert rank == 1
import os
os._exit(0)  # as a rank does
"""

WRONG_CHILD = """
import sys, torch
from pathlib import Path
from engine.errors import LaunchError
from engine.config.degrees import Degrees
from engine.parallel.distributed import connect_mesh
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
exchange = torch.distributed.all_to_all_single
def wrong(into, given, *splits, group):
    exchange(into, given, *splits, group=group)
    into[0] += 1
if rank == 1:
    torch.distributed.all_to_all_single = wrong
try:
    connect_mesh(rank, Degrees(2), torch.device("cpu"), store_file=folder / "store", timeout_s=240.0)
except LaunchError as error:
    print(error.message, file=sys.stderr, flush=True)
    if rank == 1:
        assert "all_to_all of the world group, ranks 0, 1, gave wrong numbers: [[2.0, " in error.message
    else:
        assert "broadcast of the world group, ranks 0, 1, over gloo failed: " in error.message  # its peer has gone
else:
    assert rank == 0
import os
os._exit(0)
"""


def test_a_rank_that_does_nothing_is_told_of_in_time(tmp_path: Path) -> None:
    run_processes(SILENT_CHILD, 2, tmp_path)


def test_wrong_numbers_over_gloo_are_told_of(tmp_path: Path) -> None:
    run_processes(WRONG_CHILD, 2, tmp_path)


def spoil(mesh: Mesh, name: str) -> None:
    """Let an operation of a rank's tp group give a number too large by one."""
    operation = getattr(mesh.tp, name)

    def wrong(*arguments: object) -> torch.Tensor:
        return operation(*arguments) + 1

    setattr(mesh.tp, name, wrong)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "all_to_all"])  # no tp group exchanges rows
def test_a_group_with_wrong_numbers_is_named(name: str) -> None:
    degrees = Degrees(2, 2)
    meshes = thread_meshes(degrees, DEADLINE_S)
    spoil(meshes[3], name)

    def work(mesh: Mesh) -> None:
        try:
            try_groups(mesh, degrees, CPU, lambda _: None)
        finally:
            if mesh is meshes[3]:
                for other in meshes:
                    other.close()

    with ThreadPoolExecutor(len(meshes)) as pool:
        *others, last = [pool.submit(work, mesh) for mesh in meshes]
    with pytest.raises(LaunchError, match=f"first {name} of the tp group, ranks 2, 3, gave wrong numbers: "):
        last.result(DEADLINE_S)
    assert all(isinstance(other.exception(), RankError | None) for other in others)


@pytest.mark.parametrize("degrees", [Degrees(2), Degrees(2, 2), Degrees(1, 2, 2), Degrees(4)])
def test_every_operation_of_every_group_is_tried_once(degrees: Degrees) -> None:
    meshes = thread_meshes(degrees, DEADLINE_S)
    begun: list[str] = []
    with ThreadPoolExecutor(len(meshes)) as pool:
        list(pool.map(lambda mesh: try_groups(mesh, degrees, CPU, begun.append), meshes))
    groups = {(name, tuple(ranks)) for name, all_ranks in degrees.groups().items() for ranks in all_ranks}
    for operation in OPERATIONS:
        exchanging = ("world", "sp", "wide") if operation == "all_to_all" else tuple(degrees.groups())
        distinct = {ranks for name, ranks in groups if len(ranks) > 1 and name in exchanging}
        tried = [what.partition("ranks ")[2] for what in begun if f"first {operation} " in what]
        assert sorted(tried) == sorted(f"{', '.join(map(str, ranks))}," for ranks in distinct for _ in ranks)


def test_what_hangs_in_nccl_comes_with_advice() -> None:
    over = threading.Event()

    def hang(begin: object) -> None:
        over.wait(DEADLINE_S)

    with pytest.raises(LaunchError, match=r"connecting over nccl was not done within 0\.05 s") as raised:
        within(0.05, "nccl", hang)
    over.set()
    assert all(word in raised.value.message for word in ("NCCL_P2P_DISABLE=1", "NCCL_NVLS_ENABLE=0", "--shm-size"))


def test_the_thread_that_hangs_does_not_keep_a_process_alive(tmp_path: Path) -> None:
    script = "import time; from engine.parallel.greeting import within\nwithin(0.01, 'gloo', lambda _: time.sleep(1e6))"
    with pytest.raises(AssertionError, match="LaunchError: connecting over gloo"):
        run_processes(script, 1, tmp_path)
