"""Ranks that are threads of one process, for tests and for looking at sharded code in a debugger.

They stand in for GPUs, so they hold to NCCL's rules where threads and gloo would forgive: what NCCL would refuse, or
wait for without end, is a `RankError` of every rank. The rules:

- Ranks whose operations, elements or dtypes differ hang or read each other's bytes as something else: NCCL compares
  nothing. Here every rank first lays down a card that says what it is about to do, and all must agree.
- torch's ProcessGroupNCCL takes dense, contiguous tensors of the dtypes in its table (NCCLUtils.hpp). float8 is one of
  them in some versions only, and the sum of bools is their maximum.
- NCCL discards an operation of no elements (taskAppend in its enqueue.cc). So no rows on all ranks are fine, and on one
  alone they leave the others waiting, which their cards show.
- Communicators that share a GPU must not be at work at once unless all ranks start them in one order: a rank uses one
  at a time, from one thread. That they are on one stream is for a GPU to show, threads have none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product

import torch

from engine.config.degrees import Degrees
from engine.errors import RankError
from engine.parallel.group import Group, LocalGroup
from engine.parallel.mesh import Mesh

_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool),
}
_SUMS = {"all_reduce", "reduce_scatter"}
_FP8_NAN = 0x7F  # of e4m3, which travels as bytes


class RankThread:
    """Where the groups of one rank are used: in one thread, one group at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._at_work: Group | None = None

    def begin(self, group: Group) -> str | None:
        """Note that a group is at work until `end`, or return what forbids it."""
        thread = threading.current_thread()
        with self._lock:
            if self._at_work is not None:
                return f"started while {self._at_work} of the same rank is at work"
            self._thread = self._thread or thread
            if self._thread is not thread:
                return f"in thread {thread.name}, where the rank's groups are used in {self._thread.name}"
            self._at_work = group
        return None

    def end(self) -> None:
        """Note that the group has done its work."""
        self._at_work = None


@dataclass(frozen=True)
class _Card:
    """What a rank is about to do.

    number: of the operation, counted by the group. shape: of the tensor, None for rows that may differ from rank to
    rank. agreed: what else must be the same on all ranks. sent, received: how many rows to and from each rank.
    """

    number: int
    operation: str
    dtype: torch.dtype
    device: str
    shape: tuple[int | None, ...]
    agreed: str
    sent: tuple[int, ...] = field(default=(), compare=False)
    received: tuple[int, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        lengths = ", ".join("rows" if length is None else str(length) for length in self.shape)
        rows = f", sends {list(self.sent)} and receives {list(self.received)} rows" if self.sent else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"operation {self.number}, {self.operation} of {dtype} ({lengths}) on {self.device}{self.agreed}{rows}"


_Slot = tuple[_Card, torch.Tensor]
_Combine = Callable[[list[_Slot]], torch.Tensor]


class _Meeting:
    """Where threads lay down their cards and tensors for each other. Ends when one of them breaks a rule."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self._size, self.timeout_s = size, timeout_s
        self._changed = threading.Condition()
        self.waiting = self._met = 0  # ranks, and how often all have come
        self._closed = False
        self._slots: dict[int, _Slot] = {}
        self._failure: str | None = None

    def exchange(self, rank: int, own: _Slot, combine: _Combine) -> torch.Tensor:
        """Give what `combine` makes of every rank's slot: a copy, since the tensors are the ranks' own again then."""
        self._slots[rank] = own
        self._wait(rank)
        slots = [self._slots[each] for each in range(self._size)]
        if complaint := _disagreement([card for card, _ in slots]):
            raise self.fail(complaint)
        try:
            result = combine(slots)
        except BaseException:
            self.close()
            raise
        self._wait(rank)
        return result

    def fail(self, message: str) -> RankError:
        """End the group for all its ranks, which raise the same."""
        self._failure = self._failure or message  # before those who wait can look
        self.close()
        return RankError(self._failure)

    def close(self) -> None:
        """End the group: a rank that waits, or comes later, gets a `RankError`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait(self, rank: int) -> None:
        """Return when all ranks have come, also if one of them has ended the group since then."""
        with self._changed:
            met = self._met
            self.waiting += 1
            if self.waiting == self._size and not self._closed:
                self.waiting, self._met = 0, met + 1
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._met > met or self._closed, self.timeout_s)
            if self._met > met:
                return
        self.close()
        vain = f"rank {rank} waited for the other ranks of its group in vain: {self._slots[rank][0]}"
        raise RankError(self._failure or vain)


class ThreadGroup(Group):
    """One of a group's ranks, which are threads."""

    def __init__(self, rank: int, size: int, meeting: _Meeting, thread: RankThread, *, name: str, spoils: bool) -> None:
        """thread: the same for all groups of this rank. name: the group's, in messages. spoils: whether a tensor whose
        content is undefined once it was passed is overwritten, to find what still reads it."""
        self.rank, self.size = rank, size
        self._meeting, self._thread = meeting, thread
        self._name, self._spoils = name, spoils
        self._operations = 0
        self._agreed = ""  # put on the next card

    def __str__(self) -> str:
        return self._name

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        card = self._card("all_reduce", tensor)
        total = self._exchange(card, tensor, lambda slots: _sum([each for _, each in slots]), handed_over=False)
        return tensor.copy_(total)

    def reduce_scatter(self, tensor: torch.Tensor) -> torch.Tensor:
        card = self._card("reduce_scatter", tensor)
        rows, rest = divmod(tensor.shape[0], self.size)
        if rest:
            raise self._fail(f"{card}: {tensor.shape[0]} rows do not divide by {self.size} ranks")
        own = slice(self.rank * rows, (self.rank + 1) * rows)
        return self._exchange(card, tensor, lambda slots: _sum([each[own] for _, each in slots]))

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        card = self._card("all_gather", tensor)
        return self._exchange(card, tensor, lambda slots: torch.cat([each for _, each in slots]))

    def all_to_all(self, tensor: torch.Tensor, sent: Sequence[int], received: Sequence[int]) -> torch.Tensor:
        card = self._card("all_to_all", tensor, sent=sent, received=received)
        if not len(sent) == len(received) == self.size or min(*sent, *received) < 0 or sum(sent) != tensor.shape[0]:
            raise self._fail(f"{card}: that is not how {tensor.shape[0]} rows divide among {self.size} ranks")
        return self._exchange(
            card, tensor, lambda slots: torch.cat([each.split(theirs.sent)[self.rank] for theirs, each in slots])
        )

    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        self._agreed = f", from rank {source}"
        card = self._card("broadcast", tensor)
        if not 0 <= source < self.size:
            raise self._fail(f"{card}: there are {self.size} ranks")
        return tensor.copy_(self._exchange(card, tensor, lambda slots: slots[source][1].clone(), handed_over=False))

    def gather_rows(self, tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
        if len(rows) != self.size or rows[self.rank] != tensor.shape[0]:
            raise self._fail(f"gather_rows of {tensor.shape[0]} rows, where ranks have {rows}")
        self._agreed = f", for {rows} rows"
        return super().gather_rows(tensor, rows)

    def close(self) -> None:
        self._meeting.close()

    def _card(
        self, operation: str, tensor: torch.Tensor, *, sent: Sequence[int] = (), received: Sequence[int] = ()
    ) -> _Card:
        """Make the card of the next operation. Raises where this rank alone can tell that NCCL would refuse it."""
        self._operations += 1
        shape = (None if operation == "all_to_all" and not axis else length for axis, length in enumerate(tensor.shape))
        what = self._operations, operation, tensor.dtype, tensor.device.type
        card = _Card(*what, tuple(shape), self._agreed, tuple(sent), tuple(received))
        self._agreed = ""
        if not tensor.is_contiguous():  # nor are sparse ones
            raise self._fail(f"{card}: the tensor is not contiguous")
        if tensor.dtype not in _DTYPES or (tensor.dtype == torch.bool and operation in _SUMS):
            raise self._fail(f"{card}: NCCL has no such operation for this dtype everywhere")
        if tensor.dim() == 0 and operation not in ("all_reduce", "broadcast"):
            raise self._fail(f"{card}: the tensor has no rows")
        return card

    def _exchange(
        self, card: _Card, tensor: torch.Tensor, combine: _Combine, *, handed_over: bool = True
    ) -> torch.Tensor:
        """Meet the other ranks. handed_over: the caller does not read the tensor again, so that it may be spoiled."""
        if complaint := self._thread.begin(self):
            raise self._fail(f"{card}: {complaint}")
        try:
            result = self._meeting.exchange(self.rank, (card, tensor), combine)
        finally:
            self._thread.end()
        if handed_over and self._spoils:
            with torch.no_grad():
                tensor.fill_(torch.nan if tensor.is_floating_point() else _FP8_NAN)
        return result

    def _fail(self, message: str) -> RankError:
        return self._meeting.fail(f"rank {self.rank} of {self._name}: {message}")


def thread_groups(
    size: int,
    timeout_s: float = 60.0,
    *,
    threads: Sequence[RankThread] | None = None,
    name: str = "a group",
    spoils: bool = False,
) -> list[Group]:
    """Make one group's ranks, for `size` threads. A rank that waits longer than `timeout_s` raises `RankError`.

    threads: one a rank, None where ranks have no other group. name, spoils: as in `ThreadGroup`.
    """
    meeting = _Meeting(size, timeout_s)
    threads = threads or [RankThread() for _ in range(size)]
    return [ThreadGroup(rank, size, meeting, threads[rank], name=name, spoils=spoils) for rank in range(size)]


def _disagreement(cards: Sequence[_Card]) -> str | None:
    """How the cards of two ranks contradict each other, if any do."""
    for rank, card in enumerate(cards):
        if card != cards[0]:
            return f"ranks differ. Rank 0: {cards[0]}. Rank {rank}: {card}"
    for (source, sending), (target, receiving) in product(enumerate(cards), repeat=2):
        if sending.sent and sending.sent[target] != receiving.received[source]:
            return f"ranks expect other rows than are sent. Rank {source}: {sending}. Rank {target}: {receiving}"
    return None


def _sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(tensors)).sum(dim=0, dtype=tensors[0].dtype)


def thread_meshes(degrees: Degrees, timeout_s: float = 60.0, *, spoils: bool = False) -> list[Mesh]:
    """Make the meshes of ranks that are threads. timeout_s, spoils: as in `thread_groups`."""
    threads = [RankThread() for _ in range(degrees.ranks)]

    @cache
    def groups(ranks: tuple[int, ...]) -> list[Group]:
        name, own = f"the group of ranks {', '.join(map(str, ranks))}", [threads[rank] for rank in ranks]
        return thread_groups(len(ranks), timeout_s, threads=own, name=name, spoils=spoils)

    def group_of(rank: int, ranks: tuple[int, ...]) -> Group:
        return groups(ranks)[ranks.index(rank)] if rank in ranks else LocalGroup()

    return [Mesh.build(rank, degrees, partial(group_of, rank)) for rank in range(degrees.ranks)]
