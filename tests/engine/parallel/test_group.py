"""Every kind of group does the same: one rank, threads, and processes with gloo."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from engine.config.degrees import Degrees
from engine.errors import RankError
from engine.parallel.group import Group, LocalGroup
from engine.parallel.mesh import Mesh
from tests.engine.parallel.thread_group import thread_groups, thread_meshes

DEADLINE_S = 240.0
CPU = torch.device("cpu")


def check_collectives(group: Group, device: torch.device = CPU) -> None:
    """Raise if any operation of a rank gives something else than it says. Runs in tests and in child processes."""
    size, rank = group.size, group.rank
    for dtype in (torch.float32, torch.bfloat16):
        # whole numbers small enough that their sums are exact in bfloat16, in whatever order
        numbers = torch.arange(size * 2 * 3, dtype=dtype, device=device).view(size * 2, 3) % 7
        every = [numbers + 8 * r for r in range(size)]
        mine = every[rank].clone()
        total = torch.stack(every).sum(0)

        tensor = mine.clone()
        assert group.all_reduce(tensor) is tensor
        assert torch.equal(tensor, total), "all_reduce"
        assert torch.equal(group.reduce_scatter(mine.clone()), total.chunk(size)[rank]), "reduce_scatter"
        assert torch.equal(group.all_gather(mine.clone()), torch.cat(every)), "all_gather"
        narrow, wide = group.all_gather_each([mine[:, :1].clone(), mine.clone()])
        assert torch.equal(wide, torch.cat(every)), "all_gather_each"
        assert torch.equal(narrow, torch.cat(every)[:, :1]), "all_gather_each"
        exchanged = torch.cat([tensor.chunk(size)[rank] for tensor in every])
        assert torch.equal(group.all_to_all(mine.clone(), [2] * size, [2] * size), exchanged), "all_to_all"
        check_uneven(group, dtype, device)
        for source in range(size):
            assert torch.equal(group.broadcast(mine.clone(), source), every[source]), "broadcast"


def check_uneven(group: Group, dtype: torch.dtype, device: torch.device) -> None:
    """Exchanges of rows that differ from rank to rank."""
    size, rank = group.size, group.rank
    sent = [[(source + 2 * target) % 3 for target in range(size)] for source in range(size)]  # some nothing

    def rows_of(number: float, count: int) -> torch.Tensor:
        return torch.full((count, 2), number, dtype=dtype, device=device)

    pieces = [[rows_of(10.0 * s + t, sent[s][t]) for t in range(size)] for s in range(size)]
    received = [sent[source][rank] for source in range(size)]
    expected = torch.cat([pieces[source][rank] for source in range(size)])
    assert torch.equal(group.all_to_all(torch.cat(pieces[rank]), sent[rank], received), expected), "all_to_all, uneven"
    wait = group.begin_all_to_all(torch.cat(pieces[rank]), sent[rank], received)
    assert torch.equal(wait(), expected), "begin_all_to_all"
    rows = [(3 * r + 1) % 4 for r in range(size)]
    every = [rows_of(float(r), rows[r]) for r in range(size)]
    assert torch.equal(group.gather_rows(every[rank].clone(), rows), torch.cat(every)), "gather_rows"
    for shared in (rows, group.shares(4 * size - 1)):
        every = [rows_of(float(r), shared[r]) for r in range(size)]
        narrow, wide = group.gather_rows_of_each([every[rank][:, :1].clone(), every[rank].clone()], shared)
        assert torch.equal(wide, torch.cat(every)), "gather_rows_of_each"
        assert torch.equal(narrow, torch.cat(every)[:, :1]), "gather_rows_of_each"


def run_threads(groups: list[Group], work: Callable[[Group], None]) -> None:
    def run(group: Group) -> None:
        try:
            work(group)
        except BaseException:
            group.close()  # the other ranks would wait
            raise

    with ThreadPoolExecutor(len(groups)) as pool:
        for future in [pool.submit(run, group) for group in groups]:
            future.result(DEADLINE_S)


def test_one_rank() -> None:
    check_collectives(LocalGroup())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_threads(size: int) -> None:
    run_threads(thread_groups(size, DEADLINE_S, spoils=True), check_collectives)


def check_mesh(mesh: Mesh, degrees: Degrees) -> None:
    """Raise if a group's operations are wrong, or if it has other ranks than it should."""
    tp, sp, cfg = degrees.tp, degrees.sp, degrees.cfg
    c, s, t = mesh.cfg.rank, mesh.sp.rank, mesh.tp.rank
    expected = {
        mesh.world: range(degrees.ranks),
        mesh.tp: [(c * sp + s) * tp + other for other in range(tp)],
        mesh.sp: [(c * sp + other) * tp + t for other in range(sp)],
        mesh.cfg: [(other * sp + s) * tp + t for other in range(cfg)],
        mesh.wide: [other * tp + t for other in range(cfg * sp)],
    }
    for group, ranks in expected.items():
        check_collectives(group)
        assert group.all_gather(torch.tensor([mesh.world.rank])).tolist() == list(ranks)


DEGREES = [Degrees(2), Degrees(1, 2), Degrees(1, 1, 2), Degrees(4), Degrees(2, 2), Degrees(1, 2, 2), Degrees(2, 1, 2)]


@pytest.mark.parametrize("degrees", DEGREES)
def test_meshes_of_threads(degrees: Degrees) -> None:
    meshes = thread_meshes(degrees, DEADLINE_S, spoils=True)
    with ThreadPoolExecutor(len(meshes)) as pool:
        for future in [pool.submit(check_mesh, mesh, degrees) for mesh in meshes]:
            future.result(DEADLINE_S)


# Starting takes far longer than a mesh, so that the same processes are the ranks of one after the other.
CHILD = """
import sys, torch
from pathlib import Path
from engine.parallel.distributed import connect_mesh
from tests.engine.parallel.test_group import DEADLINE_S, DEGREES, check_mesh
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
for number, degrees in enumerate(DEGREES):
    if rank < degrees.ranks:
        print(degrees, file=sys.stderr, flush=True)  # the last one is that which failed
        store_file = folder / f"store {number}"
        mesh = connect_mesh(rank, degrees, torch.device("cpu"), store_file=store_file, timeout_s=DEADLINE_S)
        check_mesh(mesh, degrees)
        mesh.close()
"""


def test_processes(tmp_path: Path) -> None:
    run_processes(CHILD, max(degrees.ranks for degrees in DEGREES), tmp_path)


# NCCL takes no two ranks on one GPU, but one rank that is alone.
ALONE_CHILD = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from engine.parallel.distributed import DistributedGroup
from tests.engine.parallel.test_group import check_collectives, check_recorded
device = torch.device(DEVICE)
on_gpu = device.type == "cuda"
store = dist.FileStore(str(Path(sys.argv[2]) / "store"), 1)
backend = "nccl" if on_gpu else "gloo"
dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=device if on_gpu else None)
group = DistributedGroup(None, staged=False)
check_collectives(group, device)
if on_gpu:
    check_recorded(group, device)
group.close()
"""


def check_recorded(group: Group, device: torch.device) -> None:
    """Raise if an operation of a rank that is alone cannot be part of a CUDA graph, or does not run in its replay."""
    rows = 6
    operations: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "all_reduce": group.all_reduce,
        "reduce_scatter": group.reduce_scatter,
        "all_gather": group.all_gather,
        "all_to_all": lambda given: group.all_to_all(given, [rows], [rows]),
        "broadcast": group.broadcast,
    }
    for name, operation in operations.items():
        given = torch.zeros((rows, 8), dtype=torch.bfloat16, device=device)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            operation(given.clone())
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = operation(given + 1)
        given.fill_(4)
        graph.replay()
        torch.cuda.synchronize(device)
        assert torch.equal(result, given + 1), f"{name} in a graph"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_a_process_that_is_alone(tmp_path: Path, device: str) -> None:
    run_processes(ALONE_CHILD.replace("DEVICE", repr(device)), 1, tmp_path)


def run_processes(script: str, count: int, folder: Path) -> None:
    """Run the script in `count` processes, each with its rank and a folder that they share."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for rank in range(count)
    ]
    try:
        for child in children:
            _, errors = child.communicate(timeout=DEADLINE_S)
            assert child.returncode == 0, errors
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_rank_that_leaves_ends_the_wait_of_the_others() -> None:
    first, second = thread_groups(2, DEADLINE_S)
    raised = threading.Event()

    def wait() -> None:
        with pytest.raises(RankError, match="rank 0 waited"):
            first.all_reduce(torch.ones(1))
        raised.set()

    thread = threading.Thread(target=wait)
    thread.start()
    second.close()
    thread.join(DEADLINE_S)
    assert raised.is_set()


def test_a_rank_that_never_comes_ends_the_wait_after_the_deadline() -> None:
    first, _ = thread_groups(2, timeout_s=0.05)
    with pytest.raises(RankError, match="in vain"):
        first.all_reduce(torch.ones(1))
