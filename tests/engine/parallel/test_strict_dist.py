"""What `DistributedGroup` asks of `torch.distributed` is what NCCL can do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from engine.config.degrees import Degrees
from engine.parallel.group import Group
from tests.engine.parallel.strict_dist import StrictDist, Work, strict_group, strict_meshes
from tests.engine.parallel.test_group import DEADLINE_S, DEGREES, check_mesh, run_threads
from tests.engine.parallel.thread_group import thread_groups


@pytest.mark.parametrize("degrees", DEGREES)
def test_operations_of_every_mode(degrees: Degrees) -> None:
    meshes = strict_meshes(degrees, DEADLINE_S, spoils=True)
    with ThreadPoolExecutor(len(meshes)) as pool:
        for future in [pool.submit(check_mesh, mesh, degrees) for mesh in meshes]:
            future.result(DEADLINE_S)


def test_views_are_copied() -> None:
    def check(group: Group) -> None:
        columns = torch.full((4, 6), 1.0 + group.rank)[:, ::2]
        assert group.all_reduce(columns) is columns
        assert torch.equal(columns, torch.full((4, 3), 3.0))
        assert torch.equal(group.all_gather(columns.t()), columns.t().repeat(2, 1))

    run_threads([strict_group(group) for group in thread_groups(2, DEADLINE_S)], check)


ONES = torch.ones(4, 3)
PLANTED: dict[str, tuple[Callable[[StrictDist], object], str]] = {
    "a view": (lambda dist: dist.all_reduce(torch.ones(3, 4).t(), group=None), "contiguous"),
    "a sparse tensor": (lambda dist: dist.broadcast(ONES.to_sparse(), group=None, group_src=0), "dense"),
    "an output that is a view": (
        lambda dist: dist.all_gather_single(torch.ones(3, 8).t(), ONES, group=None),
        "contiguous",
    ),
    "another dtype": (lambda dist: dist.all_gather_single(ONES.repeat(2, 1).half(), ONES, group=None), "dtype"),
    "another device": (
        lambda dist: dist.all_gather_single(ONES.repeat(2, 1).to("meta"), ONES, group=None),
        "device",
    ),
    "too little to gather into": (lambda dist: dist.all_gather_single(ONES.clone(), ONES, group=None), "times"),
    "too much to scatter into": (lambda dist: dist.reduce_scatter_single(ONES.clone(), ONES, group=None), "times"),
    "splits that do not add up": (
        lambda dist: dist.all_to_all_single(torch.ones(4, 3), ONES, [2, 2], [2, 1], group=None),
        "add up",
    ),
    "an output for other splits": (
        lambda dist: dist.all_to_all_single(torch.ones(5, 3), ONES, [2, 2], [2, 2], group=None),
        "add up",
    ),
    "too few splits": (lambda dist: dist.all_to_all_single(torch.ones(4, 3), ONES, [4], [4], group=None), "each rank"),
    "other rows": (lambda dist: dist.all_to_all_single(torch.ones(4, 5), ONES, [2, 2], [2, 2], group=None), "as long"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_nccl_would_not_take(planted: str) -> None:
    call, message = PLANTED[planted]
    with pytest.raises(AssertionError, match=message):
        call(StrictDist(thread_groups(2, DEADLINE_S)[0], []))


def start(dist: StrictDist) -> tuple[torch.Tensor, torch.Tensor, Work]:
    """An exchange of a lone rank that is on its way."""
    given, output = torch.ones(4, 3), torch.zeros(4, 3)
    work = dist.all_to_all_single(output, given, [4], [4], group=None, async_op=True)
    assert work is not None
    return given, output, work


def test_an_operation_on_its_way() -> None:
    (group,) = thread_groups(1)
    under_way: list[Work] = []
    dist, other = StrictDist(group, under_way), StrictDist(thread_groups(1)[0], under_way)
    _, output, work = start(dist)
    assert output.isnan().all(), "nothing has come"
    with pytest.raises(AssertionError, match="on its way"):
        other.all_reduce(torch.ones(1), group=None)
    work.wait()
    assert torch.equal(output, torch.ones(4, 3))
    other.all_reduce(torch.ones(1), group=None)
    given, _, work = start(dist)
    given.zero_()
    with pytest.raises(AssertionError, match="overwritten"):
        work.wait()


def test_operations_that_are_launched_together() -> None:
    dist = StrictDist(thread_groups(1)[0], [])

    def gather(*dtypes: torch.dtype) -> None:
        with dist.distributed_c10d._coalescing_manager(None):
            for dtype in dtypes:
                dist.all_gather_single(ONES.to(dtype, copy=True), ONES.to(dtype), group=None)

    gather(torch.float32, torch.float32)
    with pytest.raises(AssertionError, match="dtype"):
        gather(torch.float32, torch.uint8)
