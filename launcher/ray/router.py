"""Ray Serve's router for the engines: by the seconds of work ahead of each, as the process' `FLEET` knows them.

It asks no replica how long its queue is before it sends a request there: one that is full says so, and the next takes
it. Serve makes one for each handle, in a thread of its own. Its interface is alpha: see what `pyproject.toml` allows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from launcher.logs import log_event
from launcher.ray.fleet import FLEET
from launcher.ray.wire import Hints, decode_hints

_UNREACHABLE_S = 2.0  # after which a replica is tried again that could not be reached
_ASKED = 4  # replicas that are asked whether they still are full, when all are


class WorkRouter(RequestRouter):  # type: ignore[misc]
    """Sends a request where the least work is ahead."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._stats: dict[str, Any] = {}  # what each replica said last, by name
        self._unreachable: dict[str, float] = {}  # until when, by name

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Rank the replicas for a request, each a rank of its own, those known to be full or out of reach last."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        hints = hints_of(pending_request)
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ordered = [by_name[name] for name in FLEET.rank(list(by_name), hints)]
        free = [replica for replica in ordered if self._is_free(replica)]
        if free and hints is not None:  # now: others are ranked before this one has been taken
            FLEET.sent(hints.ticket, free[0].replica_id.unique_id, hints.work)
        return [[replica] for replica in free] or [ordered[:_ASKED]]

    def _is_free(self, replica: RunningReplica) -> bool:
        """Whether nothing is known against sending it a request."""
        if time.monotonic() < self._unreachable.get(replica.replica_id.unique_id, 0.0):
            return False
        requests = self.replica_queue_len_cache.get(replica.replica_id)
        return requests is None or requests < replica.max_ongoing_requests

    async def _select_from_candidate_replicas(
        self, candidates: list[RunningReplica], backoff_index: int
    ) -> RunningReplica | None:
        """Take the first that may be free, and ask only where none is."""
        for replica in candidates:
            if self._is_free(replica):
                return self.curr_replicas.get(replica.replica_id)
        return await super()._select_from_candidate_replicas(candidates, backoff_index)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Note where a request went."""
        hints = hints_of(pending_request)
        if hints is not None and FLEET.where(hints.ticket) != replica_id.unique_id:
            FLEET.sent(hints.ticket, replica_id.unique_id, hints.work)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take in which replicas there are, and what they say of themselves."""
        super().update_replicas(replicas)
        self._say_which()
        for replica in replicas:
            name, said = replica.replica_id.unique_id, replica.routing_stats
            if said and said != self._stats.get(name):
                self._stats[name] = said
                _hear(name, said)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Leave a replica out that has died, before the controller knows of it."""
        super().on_replica_actor_died(replica_id)
        self._say_which()

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """Try a replica last for a while that cannot be reached."""
        super().on_replica_actor_unavailable(replica_id)
        self._unreachable[replica_id.unique_id] = time.monotonic() + _UNREACHABLE_S

    def _say_which(self) -> None:
        names = [replica_id.unique_id for replica_id in self.curr_replicas]
        for known in (self._stats, self._unreachable):
            for name in known.keys() - names:
                del known[name]
        FLEET.replicas_are(names)


def hints_of(pending_request: PendingRequest | None) -> Hints | None:
    """Read the hints from the arguments of a call of `draw`; None where there are none."""
    if pending_request is None:
        return None
    arguments: Sequence[Any] = (*pending_request.args, *pending_request.kwargs.values())
    last = arguments[-1] if len(arguments) > 1 else None
    if not isinstance(last, bytes):
        return None
    try:
        return decode_hints(last)
    except msgspec.DecodeError as error:
        log_event("a request is routed without hints", level="warning", error=str(error))
        return None


def _hear(name: str, said: dict[str, Any]) -> None:
    try:
        FLEET.stats(name, float(said["backlog_s"]), int(said.get("waiting", 0)), int(said.get("running", 0)))
    except (KeyError, TypeError, ValueError):  # of another release
        log_event("what a replica says of itself is not understood", level="warning", replica=name)
