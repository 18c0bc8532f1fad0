"""What this process knows of the engines: which of them take requests, and how many seconds of work each has ahead.

Three things tell it. A replica says its backlog every few seconds, to all processes alike, and that is old when it is
heard. The answer to a request of this process says when that will be done, and is fresh. And what this process has sent
since is counted until then, its work being turned into seconds by what former requests took. All of it becomes less as
time passes.
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from launcher.ray.wire import Hints

_MOST_TICKETS = 65536  # that are remembered; the oldest are forgotten first
_TICKET_S = 3600.0  # after which a ticket is forgotten whose end nobody told
_MOST_BACKLOG_S = 86400.0  # of what a replica says; more is taken for this
_UNKNOWN_S = 1.0  # a request takes, until one has been made
_SAMPLES = 64  # requests from which the seconds of a unit of work are learned: their median

Leaving = Callable[[Collection[str]], None]


@dataclass
class _Ticket:
    """A request that was sent. counted_s: the seconds that it has added to its replica's."""

    name: str
    work: float
    sent_at: float
    counted_s: float
    done_at: float | None = None  # as its replica has said


class Fleet:
    """Keeps what this process knows of its replicas, and ranks them for a request.

    Its methods may be called from any thread. `clock` gives monotonic seconds; `chance` chooses among replicas that are
    as good.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._clock, self._chance = clock, chance
        self._lock = threading.Lock()
        self._free_at: dict[str, float] = {}  # when each replica will have done what is known of, by `clock`
        self._tickets: OrderedDict[str, _Ticket] = OrderedDict()  # the oldest first
        self._samples: deque[float] = deque(maxlen=_SAMPLES)  # seconds of a unit of work
        self._listeners: list[Leaving] = []

    # ---- what is heard

    def replicas_are(self, names: Iterable[str]) -> None:
        """Take these for the replicas that take requests now. Those that were and are not any more are forgotten, and
        told to who asked `on_leaving`."""
        with self._lock:
            now = self._clock()
            before, self._free_at = self._free_at, {name: self._free_at.get(name, now) for name in names}
            gone = before.keys() - self._free_at.keys()
            listeners = list(self._listeners) if gone else []
        for listener in listeners:
            listener(gone)

    def stats(self, name: str, backlog_s: float, waiting: int, running: int) -> None:
        """Take in what a replica has said of itself: seconds of work, requests that wait, and that it works on.
        Unknown replicas and backlogs that are no number of seconds are ignored."""
        if not backlog_s >= 0:
            return
        with self._lock:
            if name in self._free_at:
                self._free_at[name] = self._clock() + min(backlog_s, _MOST_BACKLOG_S)

    def sent(self, ticket: str, name: str, work: float) -> None:
        """Note that a request was sent to a replica, with so much work. The same ticket again is sent there instead."""
        with self._lock:
            now = self._clock()
            self._forget(ticket, now)
            seconds = self._seconds(work)
            self._tickets[ticket] = _Ticket(name, work, now, seconds)
            if name in self._free_at:
                self._free_at[name] = max(now, self._free_at[name]) + seconds
            while self._tickets and (
                len(self._tickets) > _MOST_TICKETS or next(iter(self._tickets.values())).sent_at < now - _TICKET_S
            ):
                self._tickets.popitem(last=False)

    def accepted(self, ticket: str, estimated_s: float | None) -> None:
        """Take in that the replica has said in how many seconds the request will be done; None where it cannot know.
        Unknown tickets are ignored."""
        if estimated_s is None or not 0 <= estimated_s < math.inf:
            return
        with self._lock:
            found = self._tickets.get(ticket)
            if found is None:
                return
            now = self._clock()
            done_at = now + estimated_s
            if found.name in self._free_at:
                before = max(now, self._free_at[found.name] - found.counted_s)
                if found.done_at is None and found.work > 0 and done_at > before:
                    self._samples.append((done_at - before) / found.work)
                self._free_at[found.name] = max(before, done_at)
                found.counted_s = max(0.0, done_at - before)
            found.done_at = done_at

    def ended(self, ticket: str) -> None:
        """Note that a request has ended, in whatever way. Unknown tickets are ignored."""
        with self._lock:
            self._forget(ticket, self._clock())

    def _forget(self, ticket: str, now: float) -> None:
        found = self._tickets.pop(ticket, None)
        if found is not None and found.name in self._free_at:
            left = found.counted_s if found.done_at is None else min(found.counted_s, max(0.0, found.done_at - now))
            self._free_at[found.name] -= left

    # ---- what is asked

    def rank(self, names: Sequence[str], hints: Hints | None = None) -> list[str]:
        """Order replicas for a request, the best first: least seconds of work ahead. Those to `avoid` come last, and
        before all others that which its key belongs to."""
        avoid = hints.avoid if hints is not None else ()
        with self._lock:
            now = self._clock()
            ordered = sorted(
                names,
                key=lambda name: (name in avoid, max(0.0, self._free_at.get(name, now) - now), self._chance()),
            )
        if hints is not None and hints.key is not None and ordered:
            owner = rendezvous(hints.key, ordered)
            if owner not in avoid:
                ordered.remove(owner)
                ordered.insert(0, owner)
        return ordered

    def where(self, ticket: str) -> str | None:
        """Name the replica that a request was sent to; None for one that has ended or is unknown."""
        with self._lock:
            found = self._tickets.get(ticket)
            return None if found is None else found.name

    def takes(self, name: str) -> bool:
        """Whether a replica takes requests."""
        with self._lock:
            return name in self._free_at

    @property
    def backlog_s(self) -> float | None:
        """Seconds of work ahead of the replica that has the least; None where there is none."""
        with self._lock:
            now = self._clock()
            return min((max(0.0, free_at - now) for free_at in self._free_at.values()), default=None)

    def on_leaving(self, listener: Leaving) -> Callable[[], None]:
        """Call `listener` with the names of replicas that take no more requests, in whatever thread hears of it.
        Returns what ends that."""
        with self._lock:
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return unsubscribe

    def _seconds(self, work: float) -> float:
        """Of so much work, by what former requests took."""
        return median(self._samples) * work if self._samples and work > 0 else _UNKNOWN_S


def rendezvous(key: str, names: Iterable[str]) -> str:
    """Choose the replica that a key belongs to: the same in every process, and another only when that one is gone.
    Raises `ValueError` without names."""
    return max(names, key=lambda name: hashlib.blake2b(f"{key}\0{name}".encode(), digest_size=8).digest())


FLEET = Fleet()  # the one of this process: Serve gives its router no way to what sends the requests
