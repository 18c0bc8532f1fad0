"""What NCCL would refuse or wait for without end, planted: ranks that are threads raise an error that says it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from engine.config.degrees import Degrees
from engine.errors import RankError
from engine.parallel.group import Group
from tests.engine.parallel.thread_group import thread_groups, thread_meshes

DEADLINE_S = 240.0
Plant = Callable[[Group], object]


def rows(count: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones((count, 3), dtype=dtype)


def errors(groups: list[Group], plant: Plant) -> list[str]:
    """What each rank raises."""

    def run(group: Group) -> str:
        with pytest.raises(RankError) as caught:
            plant(group)
        return caught.value.message

    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(run, groups, timeout=DEADLINE_S))


def by_rank(first: Plant, second: Plant) -> Plant:
    return lambda group: (first if group.rank == 0 else second)(group)


RULES: dict[str, tuple[Plant, str]] = {
    "another operation": (
        by_rank(lambda group: group.all_reduce(rows()), lambda group: group.all_gather(rows())),
        r"ranks differ. Rank 0: operation 1, all_reduce of float32 \(4, 3\) on cpu. "
        r"Rank 1: operation 1, all_gather of float32 \(4, 3\) on cpu",
    ),
    "another dtype": (
        by_rank(lambda group: group.all_reduce(rows()), lambda group: group.all_reduce(rows(4, torch.bfloat16))),
        "Rank 0: .* of float32 .* Rank 1: .* of bfloat16 ",
    ),
    "another device": (
        by_rank(lambda group: group.all_reduce(rows()), lambda group: group.all_reduce(rows().to("meta"))),
        "Rank 0: .* on cpu.* Rank 1: .* on meta",
    ),
    "longer rows": (
        by_rank(lambda group: group.all_gather(rows()), lambda group: group.all_gather(torch.ones(4, 5))),
        r"Rank 0: .* \(4, 3\) .* Rank 1: .* \(4, 5\)",
    ),
    "longer rows to exchange": (
        lambda group: group.all_to_all(torch.ones(4, 3 + group.rank), [2, 2], [2, 2]),
        r"Rank 0: .* \(rows, 3\) .* Rank 1: .* \(rows, 4\)",
    ),
    "more to sum": (lambda group: group.all_reduce(rows(4 + group.rank)), r"\(4, 3\) .* \(5, 3\)"),
    "more to scatter": (lambda group: group.reduce_scatter(rows(4 + 2 * group.rank)), r"\(4, 3\) .* \(6, 3\)"),
    "more to overwrite": (lambda group: group.broadcast(rows(4 + group.rank)), r"\(4, 3\) .* \(5, 3\)"),
    "uneven rows to gather": (lambda group: group.all_gather(rows(4 + group.rank)), r"\(4, 3\) .* \(5, 3\)"),
    "no rows on one rank": (lambda group: group.all_gather(rows(group.rank)), r"\(0, 3\) .* \(1, 3\)"),
    "another source": (lambda group: group.broadcast(rows(), group.rank), "from rank 0.* from rank 1"),
    "a source that is not there": (lambda group: group.broadcast(rows(), 2), "from rank 2: there are 2 ranks"),
    "rows that do not divide": (lambda group: group.reduce_scatter(rows(5)), "5 rows do not divide by 2 ranks"),
    "other rows than are sent": (
        by_rank(
            lambda group: group.all_to_all(rows(), [1, 3], [1, 2]),
            lambda group: group.all_to_all(rows(), [1, 3], [3, 3]),
        ),
        r"Rank 1: .* sends \[1, 3\] and receives \[3, 3\] rows. Rank 0: .* sends \[1, 3\] and receives \[1, 2\] rows",
    ),
    "more rows than there are": (lambda group: group.all_to_all(rows(), [2, 3], [2, 2]), "how 4 rows divide"),
    "rows for three": (lambda group: group.all_to_all(rows(), [2, 1, 1], [2, 1, 1]), "divide among 2 ranks"),
    "fewer than no rows": (lambda group: group.all_to_all(rows(), [5, -1], [5, -1]), "how 4 rows divide"),
    "shares that ranks see in two ways": (
        lambda group: group.gather_rows(rows(3), [3, 3] if group.rank else [3, 2]),
        r"for \[3, 2\] rows. Rank 1: .* for \[3, 3\] rows",
    ),
    "a share that is not this rank's": (lambda group: group.gather_rows(rows(3), [2, 2]), "3 rows, where ranks have"),
    "a transposed matrix": (lambda group: group.all_reduce(rows().t()), "not contiguous"),
    "some columns": (lambda group: group.all_gather(rows()[:, :2]), "not contiguous"),
    "a sparse matrix": (lambda group: group.all_reduce(rows().to_sparse()), "not contiguous"),
    "fp8": (lambda group: group.all_gather(rows(4, torch.float8_e4m3fn)), "float8_e4m3fn .* no such operation"),
    "int16": (lambda group: group.all_reduce(rows(4, torch.int16)), "int16 .* no such operation"),
    "a sum of bools": (lambda group: group.all_reduce(rows(4, torch.bool)), "bool .* no such operation"),
    "what one rank alone does wrong, while the other waits": (
        by_rank(lambda group: group.all_reduce(rows()), lambda group: group.all_reduce(rows().t())),
        r"rank 1 of a group: operation 1, all_reduce of float32 \(3, 4\) on cpu: the tensor is not contiguous",
    ),
    "a number without rows": (lambda group: group.all_gather(torch.ones(())), "has no rows"),
}


@pytest.mark.parametrize("rule", RULES)
def test_what_nccl_would_not_do(rule: str) -> None:
    plant, message = RULES[rule]
    seen = errors(thread_groups(2, DEADLINE_S), plant)
    assert set(seen) == {seen[0]}, "all ranks say the same"
    assert re.search(message, seen[0]), seen[0]


def test_an_operation_that_one_rank_leaves_out() -> None:
    def plant(group: Group) -> None:
        group.broadcast(rows())
        if group.rank == 1:
            raise RankError("left")
        group._meeting.timeout_s = 0.05  # type: ignore[attr-defined]
        group.all_reduce(rows())

    alone, _ = errors(thread_groups(2, DEADLINE_S), plant)
    waited = "rank 0 waited for the other ranks of its group in vain: "
    assert alone == waited + "operation 2, all_reduce of float32 (4, 3) on cpu"


def test_an_operation_that_all_came_to_is_done_though_one_rank_leaves_at_once() -> None:
    """A process that has ended does not take back what it has sent."""

    def run(group: Group) -> float:
        total = float(group.all_reduce(torch.ones(1)))
        group.close()
        return total

    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            assert list(pool.map(run, thread_groups(4, DEADLINE_S))) == [4.0] * 4


def test_no_rows_on_all_ranks_are_nothing_to_do() -> None:
    def run(group: Group) -> list[tuple[int, ...]]:
        results = [
            group.all_gather(rows(0)),
            group.reduce_scatter(rows(0)),
            group.all_to_all(rows(0), [0, 0], [0, 0]),
            group.all_reduce(rows(0)),
            group.gather_rows(rows(0), [0, 0]),
        ]
        return [tuple(result.shape) for result in results]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, thread_groups(2, DEADLINE_S))) == [[(0, 3)] * 5] * 2


def in_thread(work: Callable[[], object], name: str) -> None:
    thread = threading.Thread(target=work, name=name)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_groups_of_a_rank_in_two_threads() -> None:
    mesh, other = thread_meshes(Degrees(2), DEADLINE_S)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda each: each.tp.all_reduce(rows()), (mesh, other)))
    messages = []

    def elsewhere() -> None:
        with pytest.raises(RankError) as caught:
            mesh.world.all_reduce(rows())
        messages.append(caught.value.message)

    in_thread(elsewhere, "decoder")
    assert len(messages) == 1
    assert "in thread decoder, where the rank's groups are used in ThreadPoolExecutor" in messages[0]


def test_two_groups_of_a_rank_at_once() -> None:
    """Rank 0 waits in its group for tensor parallelism while a thread of its own starts something in another."""
    mesh, *_ = thread_meshes(Degrees(2, 2), DEADLINE_S)
    waits = threading.Event()
    rank_thread = mesh.tp._thread  # type: ignore[attr-defined]
    begin = rank_thread.begin

    def begun(group: Group) -> str | None:
        complaint = begin(group)
        waits.set()
        return complaint

    rank_thread.begin = begun

    def step() -> None:
        with pytest.raises(RankError, match="in vain"):
            mesh.tp.all_reduce(rows())

    stepping = threading.Thread(target=step)
    stepping.start()
    assert waits.wait(DEADLINE_S)
    with pytest.raises(RankError, match="started while the group of ranks 0, 1 of the same rank is at work"):
        mesh.sp.all_reduce(rows())
    mesh.close()
    stepping.join(DEADLINE_S)
    assert not stepping.is_alive()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_a_tensor_that_was_handed_over_is_spoiled(dtype: torch.dtype) -> None:
    def run(group: Group) -> list[bool]:
        handed = [rows(4, dtype) for _ in range(3)]
        group.all_gather(handed[0])
        group.reduce_scatter(handed[1])
        group.all_to_all(handed[2], [2, 2], [2, 2])
        own = [group.all_reduce(rows(4, dtype)), group.broadcast(rows(4, dtype))]
        return [bool((tensor == tensor).all() and (tensor <= 2).all()) for tensor in (*handed, *own)]

    with ThreadPoolExecutor(2) as pool:
        for usable in pool.map(run, thread_groups(2, DEADLINE_S, spoils=True)):
            assert usable == [False] * 3 + [True] * 2
