"""Collective operations of ranks: an interface, and its form for one rank.

Layers get their group as an argument and never ask for the world, so that several kinds of parallelism can live side
by side. The form over processes is in `distributed.py`; tests have one over threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch


class Group(ABC):
    """Ranks that compute together.

    NCCL's rules are the contract, which the tests' `ThreadGroup` enforces: every rank calls the same operations in the
    same order, from one thread, one group at a time, with tensors on its own device that are contiguous and of the same
    dtype and shape on all ranks (`all_to_all`: but for the number of rows). fp8 is passed as uint8. `all_reduce` and
    `broadcast` overwrite the tensor; what `reduce_scatter`, `all_gather` and `all_to_all` were passed is undefined
    afterwards: the result may be that same tensor, as that of a single rank is.
    """

    rank: int
    size: int

    @abstractmethod
    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place; returns `tensor`."""

    @abstractmethod
    def reduce_scatter(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, of which each keeps its part of the rows: (rows, …) → (rows / size, …)."""

    @abstractmethod
    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Gather the rows of every rank, in order of rank: (rows, …) → (size · rows, …)."""

    @abstractmethod
    def all_to_all(self, tensor: torch.Tensor, sent: Sequence[int], received: Sequence[int]) -> torch.Tensor:
        """Send the first sent[0] rows to rank 0, the next sent[1] to rank 1, …: (sum(sent), …) → (sum(received), …), of
        which the first received[0] rows came from rank 0, …"""

    @abstractmethod
    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        """Overwrite `tensor` with that of rank `source`; returns it."""

    def begin_all_to_all(
        self, tensor: torch.Tensor, sent: Sequence[int], received: Sequence[int]
    ) -> Callable[[], torch.Tensor]:
        """Begin `all_to_all` in the background, where the ranks' library can. Returns a function that gives the result;
        until it is called no operation of this or another group may begin."""
        result = self.all_to_all(tensor, sent, received)
        return lambda: result

    def shares(self, rows: int) -> list[int]:
        """Divide a number of rows among the ranks: an equal number for each, the last ones fewer or none."""
        each = -(-rows // self.size)
        return [max(0, min(each, rows - rank * each)) for rank in range(self.size)]

    def all_gather_each(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Call `all_gather` for several tensors of the same dtype, in one operation where the ranks' library can."""
        return [self.all_gather(tensor) for tensor in tensors]

    def gather_rows(self, tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Gather as `all_gather` does, where rank i has rows[i] rows: (rows[rank], …) → (sum(rows), …)."""
        return self._without_filling(self.all_gather(_filled_up(tensor, max(rows))), rows)

    def gather_rows_of_each(self, tensors: Sequence[torch.Tensor], rows: list[int]) -> list[torch.Tensor]:
        """Call `gather_rows` for several tensors with the same `rows`, in one operation as `all_gather_each` does."""
        gathered = self.all_gather_each([_filled_up(tensor, max(rows)) for tensor in tensors])
        return [self._without_filling(tensor, rows) for tensor in gathered]

    def _without_filling(self, gathered: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """(size · max(rows), …) → (sum(rows), …), a view where what was filled up is at the end."""
        if rows == self.shares(sum(rows)):
            return gathered[: sum(rows)]
        return torch.cat([part[:count] for part, count in zip(gathered.split(max(rows)), rows, strict=True)])

    def close(self) -> None:  # noqa: B027  most groups hold nothing
        """Give up whatever the group holds."""


def _filled_up(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """(fewer rows, …) → (rows, …), the others being zeros; the tensor itself if it has as many."""
    missing = rows - tensor.shape[0]
    return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))]) if missing else tensor


class LocalGroup(Group):
    """One rank: every operation gives back the tensor that it was given."""

    rank = 0
    size = 1

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    reduce_scatter = all_gather = all_reduce

    def all_to_all(self, tensor: torch.Tensor, sent: Sequence[int], received: Sequence[int]) -> torch.Tensor:
        return tensor

    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        return tensor
