"""What is known of the time ahead: where each request stands, and when everything that is here is done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.scheduling.policy import QueuedJob


@dataclass(frozen=True)
class Estimate:
    """Where a request stands. position: the number of others' jobs that begin before it does, 0 once all of its jobs
    have begun. seconds: until its last image is decoded if nothing else comes; None while no speeds are known."""

    position: int
    seconds: float | None


class Outlook:
    """The outlook of a queue, until it changes: `queue` is in the order of the policy, after what the decoder has.

    done_at: when the image of each job is decoded, by job_id, if the ranks are free at `begins`; None while no speeds
    are known. Time that they are late then does not count: what is ahead of them stays as long.
    """

    def __init__(
        self,
        decoding: Sequence[QueuedJob],
        queue: Sequence[QueuedJob],
        *,
        begins: float,
        done_at: Mapping[int, float] | None,
    ) -> None:
        self.known = done_at is not None
        self._begins = begins
        self._position = {queued.request: 0 for queued in (*decoding, *queue) if not queued.cancelled}
        unbegun = [queued.request for queued in queue if not queued.begun]
        for place, request in reversed([*enumerate(unbegun)]):  # so that a request is where its first job is
            self._position[request] = place
        self._decoding_until, self._others_until = _ends(decoding, done_at or {}), _ends(queue, done_at or {})
        self._all_decoding_until = max(self._decoding_until.values(), default=-math.inf)
        self._all_others_until = max(self._others_until.values(), default=-math.inf)

    def estimate(self, request: int, now: float) -> Estimate | None:
        """Say where a request stands; None if it has no job here."""
        if request not in self._position:
            return None
        decoding_until = self._decoding_until.get(request, -math.inf)
        seconds = self._seconds(decoding_until, self._others_until.get(request, -math.inf), now)
        return Estimate(self._position[request], seconds if self.known else None)

    def backlog_s(self, now: float) -> float:
        """Say in how many seconds everything that is here is decoded."""
        return self._seconds(self._all_decoding_until, self._all_others_until, now)

    def _seconds(self, decoding_until: float, others_until: float, now: float) -> float:
        return max(0.0, decoding_until - now, others_until - min(now, self._begins))


def _ends(jobs: Iterable[QueuedJob], done_at: Mapping[int, float]) -> dict[int, float]:
    """When the last of each request's jobs is done, as far as that is known."""
    ends: dict[int, float] = {}
    for queued in jobs:
        done = done_at.get(queued.job.job_id, -math.inf)
        ends[queued.request] = max(done, ends.get(queued.request, done))
    return ends
