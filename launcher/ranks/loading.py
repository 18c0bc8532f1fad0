"""How far ranks are with loading their weights: what each tells, a few times a second, and the sum of all."""

from __future__ import annotations

import time
from collections.abc import Callable

from launcher.messages.rank_messages import Loading

TELL_S = 0.1  # between what a rank tells, at least, but for the beginning and the end


class LoadingReports:
    """Has a rank tell how much it has read, when it has read more, ten times a second at most."""

    def __init__(self, rank: int, send: Callable[[Loading], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._rank, self._send, self._clock = rank, send, clock
        self._told, self._told_at = -1, 0.0

    def tell(self, done: int, total: int) -> None:
        """Hear the bytes that have been read, and of how many; tell them if it is time."""
        now = self._clock()
        if done == self._told or (0 < done < total and now - self._told_at < TELL_S):
            return
        self._told, self._told_at = done, now
        self._send(Loading(rank=self._rank, done=done, total=total))


class GroupLoading:
    """Adds up what `ranks` ranks have read."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._by_rank: dict[int, Loading] = {}

    def note(self, report: Loading) -> None:
        """Take what a rank tells in place of what it told before."""
        self._by_rank[report.rank] = report

    @property
    def read(self) -> tuple[int, int]:
        """The bytes that all ranks together have read, and that they are to read: none until all have said so, and
        from then on the same."""
        if len(self._by_rank) < self._ranks:
            return 0, 0
        reports = self._by_rank.values()
        return sum(report.done for report in reports), sum(report.total for report in reports)
