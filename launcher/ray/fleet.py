"""What this process knows of the engines: which of them take requests, and how many seconds of work each has ahead.

Three things tell it. A replica says its backlog every few seconds, to all processes alike, and that is old when it is
heard. The answer to a request of this process says when that will be done, and is fresh. And what this process has sent
since is counted until then, its work being turned into seconds by what former requests took. All of it becomes less as
time passes.

Other processes send requests to the same replicas, and none hears of another's until the next backlog is told. Were all
to take the replica of which they know the least work, all would take the same. So the work that the others must have
sent since is thought to be poured over the replicas, the emptiest first, up to a common level, and a request goes to
each with the chance that its room below that level has of all rooms: to the emptiest alone where what is known is fresh
or nobody else sends, and to anyone where it is old ("Interpreting Stale Load Information", M. Dahlin, 1999). Where the
answer then says that others had sent more than was thought, `waits_less_elsewhere`. `python -m bench.cluster
--simulate` compares.
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

from launcher.ray.wire import Hints

_MOST_TICKETS = 65536  # that are remembered; the oldest are forgotten first
_TICKET_S = 3600.0  # after which a ticket is forgotten whose end nobody told
_MOST_BACKLOG_S = 86400.0  # of what a replica says; more is taken for this
_UNKNOWN_S = 1.0  # a request takes, until one has been made
_SAMPLES = 64  # requests from which the seconds of a unit of work are learned: a quarter of them took less,
_LESS = 0.25  # since those of others that they waited for are not known, and most of the rest did wait
_RATE_S = 10.0  # over which the seconds of work that this process sends in a second are averaged
_QUIET_S = 3.0  # that a replica may say nothing to what it was sent, before others are taken: it may hang
_HANGS_S = 60.0  # that one which hangs is taken last, unless it says something
_OLDEST_S = 5.0  # that what is known of a replica is taken for
_MOVE_S = 0.1  # that it takes to send a request elsewhere, generously

Leaving = Callable[[Collection[str]], None]


@dataclass
class _Ticket:
    """A request that was sent. counted_s: the seconds that it has added to its replica's. heard: whether it has been
    accepted."""

    name: str
    work: float
    sent_at: float
    counted_s: float
    done_at: float | None = None  # as its replica has said
    heard: bool = False


@dataclass
class _Replica:
    """What is known of one. free_at: when it will have done what is known of, by the clock; heard_at: when it last said
    so itself. unheard: requests that it has not accepted yet; quiet_since: since when it has accepted none of them."""

    free_at: float
    heard_at: float
    unheard: int = 0
    quiet_since: float = 0.0
    hangs_until: float = -math.inf

    def ahead_s(self, now: float) -> float:
        """Seconds of work, of what is known of."""
        return max(0.0, self.free_at - now)

    def is_quiet(self, now: float) -> bool:
        """Whether it may hang: as time passes it would seem to have done all, and get all requests that come."""
        return now < self.hangs_until or (self.unheard > 0 and now - self.quiet_since > _QUIET_S)


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
        self._replicas: dict[str, _Replica] = {}  # that take requests
        self._tickets: OrderedDict[str, _Ticket] = OrderedDict()  # the oldest first
        self._samples: deque[float] = deque(maxlen=_SAMPLES)  # seconds of a unit of work
        self._unit_s: float | None = None  # of them
        self._sent_s, self._sent_at = 0.0, clock()  # seconds of work, each of which counts less as time passes
        self._listeners: list[Leaving] = []

    # ---- what is heard

    def replicas_are(self, names: Iterable[str]) -> None:
        """Take these for the replicas that take requests now. Those that were and are not any more are forgotten, and
        told to who asked `on_leaving`."""
        with self._lock:
            now = self._clock()
            before = self._replicas
            self._replicas = {name: before.get(name) or _Replica(now, now) for name in names}
            gone = before.keys() - self._replicas.keys()
            listeners = list(self._listeners) if gone else []
        for listener in listeners:
            listener(gone)

    def stats(self, name: str, backlog_s: float, waiting: int, running: int) -> None:
        """Take in what a replica has said of itself: seconds of work, requests that wait, and that it works on.
        Unknown replicas and backlogs that are no number of seconds are ignored."""
        if not backlog_s >= 0:
            return
        with self._lock:
            if (replica := self._replicas.get(name)) is not None:
                replica.heard_at, replica.hangs_until = self._clock(), -math.inf
                replica.free_at = replica.heard_at + min(backlog_s, _MOST_BACKLOG_S)

    def hangs(self, name: str | None) -> None:
        """Note that a replica has fallen silent, so that it is taken last for a while. Unknown ones are ignored."""
        with self._lock:
            if name is not None and (replica := self._replicas.get(name)) is not None:
                replica.hangs_until = self._clock() + _HANGS_S

    def sent(self, ticket: str, name: str, work: float) -> None:
        """Note that a request was sent to a replica, with so much work. The same ticket again is sent there instead."""
        with self._lock:
            now, again = self._clock(), ticket in self._tickets
            self._forget(ticket, now)
            seconds = self._seconds(work)
            self._tickets[ticket] = _Ticket(name, work, now, seconds)
            if not again:  # Serve's router chooses anew until a replica takes it
                self._sent_s, self._sent_at = self._recently_sent(now) + seconds, now
            if (replica := self._replicas.get(name)) is not None:
                replica.free_at = max(now, replica.free_at) + seconds
                replica.quiet_since = replica.quiet_since if replica.unheard else now
                replica.unheard += 1
            while self._tickets and (
                len(self._tickets) > _MOST_TICKETS or next(iter(self._tickets.values())).sent_at < now - _TICKET_S
            ):
                self._waits_no_more(self._tickets.popitem(last=False)[1])

    def accepted(self, ticket: str, estimated_s: float | None) -> None:
        """Take in that the replica has said in how many seconds the request will be done; None where it cannot know.
        Unknown tickets are ignored."""
        with self._lock:
            found = self._tickets.get(ticket)
            if found is None:
                return
            now, replica = self._clock(), self._replicas.get(found.name)
            self._waits_no_more(found)
            if replica is not None:
                replica.quiet_since = now
            if estimated_s is None or not 0 <= estimated_s < math.inf:
                return
            done_at = now + estimated_s
            if replica is not None:
                before = max(now, replica.free_at - found.counted_s)
                if found.done_at is None and found.work > 0 and done_at > before:
                    self._learn((done_at - before) / found.work)
                replica.free_at = max(before, done_at)
                found.counted_s = max(0.0, done_at - before)
            found.done_at = done_at

    def waits_less_elsewhere(self, ticket: str) -> bool:
        """Whether a request would wait for so much less at another replica than its own has said, by what is known of
        that one, that it is to go there: by more than it takes itself, since that may have got others meanwhile."""
        with self._lock:
            found, now = self._tickets.get(ticket), self._clock()
            if found is None or found.done_at is None or self._unit_s is None:
                return False
            takes_s = self._seconds(found.work)
            others = [each for name, each in self._replicas.items() if name != found.name and not each.is_quiet(now)]
            least_s = min((replica.ahead_s(now) for replica in others), default=math.inf)
            return found.done_at - now - takes_s > least_s + takes_s + _MOVE_S

    def ended(self, ticket: str) -> None:
        """Note that a request has ended, in whatever way. Unknown tickets are ignored."""
        with self._lock:
            self._forget(ticket, self._clock())

    def _forget(self, ticket: str, now: float) -> None:
        found = self._tickets.pop(ticket, None)
        if found is not None and (replica := self._replicas.get(found.name)) is not None:
            own_s = found.counted_s if found.done_at is None else min(self._seconds(found.work), found.done_at - now)
            replica.free_at -= max(0.0, min(found.counted_s, own_s))  # the rest, of which it told, is others'
            self._waits_no_more(found)

    def _waits_no_more(self, ticket: _Ticket) -> None:
        """Note that its replica has accepted a request, or need not any more."""
        replica = self._replicas.get(ticket.name)
        if not ticket.heard and replica is not None and replica.unheard:  # it may be another of that name
            replica.unheard -= 1
        ticket.heard = True

    # ---- what is asked

    def rank(self, names: Sequence[str], hints: Hints | None = None) -> list[str]:
        """Order replicas for a request, the best first: least seconds of work ahead, but for what others may have sent.
        Those to `avoid` come last, before them those that may hang, and before all that which its key belongs to."""
        avoid = hints.avoid if hints is not None else ()
        with self._lock:
            now = self._clock()
            ahead = {name: self._ahead_s(name, now) for name in names}
            last = {name: 2 * (name in avoid) + self._is_quiet(name, now) for name in names}
            ordered = sorted(ahead, key=lambda name: (last[name], ahead[name], self._chance()))
            allowed = [name for name in ordered if not last[name]]
            first = self._by_room([ahead[name] for name in allowed], now) if allowed else 0
        if hints is not None and hints.key is not None and ordered:
            owner = rendezvous(hints.key, ordered)
            if not last[owner]:
                first = ordered.index(owner)
        return [ordered[first], *ordered[:first], *ordered[first + 1 :]] if ordered else []

    def _by_room(self, ahead: Sequence[float], now: float) -> int:
        """Choose of replicas, the emptiest first, by their room below the level to which others have filled them."""
        poured_s = self._sent_by_others(now)
        filled, total_s, level = 0, 0.0, 0.0
        while filled < len(ahead) and (not filled or ahead[filled] < level):
            total_s += ahead[filled]
            filled += 1
            level = (poured_s + total_s) / filled
        left = self._chance() * poured_s
        for place in range(filled):
            left -= level - ahead[place]
            if left < 0:
                return place
        return 0

    def _sent_by_others(self, now: float) -> float:
        """Seconds of work that other processes have sent since the replicas last said what they have, as far as that
        can be known: as much as replicas work off, less what this process sends."""
        if not self._replicas:
            return 0.0
        busy = sum(replica.free_at > now for replica in self._replicas.values())
        age_s = sum(min(_OLDEST_S, now - replica.heard_at) for replica in self._replicas.values())
        return max(0.0, busy - self._recently_sent(now) / _RATE_S) * age_s / len(self._replicas)

    def _ahead_s(self, name: str, now: float) -> float:
        replica = self._replicas.get(name)
        return 0.0 if replica is None else replica.ahead_s(now)

    def _is_quiet(self, name: str, now: float) -> bool:
        replica = self._replicas.get(name)
        return replica is not None and replica.is_quiet(now)

    def where(self, ticket: str) -> str | None:
        """Name the replica that a request was sent to; None for one that has ended or is unknown."""
        with self._lock:
            found = self._tickets.get(ticket)
            return None if found is None else found.name

    def takes(self, name: str) -> bool:
        """Whether a replica takes requests."""
        with self._lock:
            return name in self._replicas

    @property
    def backlog_s(self) -> float | None:
        """Seconds of work ahead of the replica that has the least; None where there is none."""
        with self._lock:
            now = self._clock()
            return min((replica.ahead_s(now) for replica in self._replicas.values()), default=None)

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
        return _UNKNOWN_S if self._unit_s is None or work <= 0 else self._unit_s * work

    def _learn(self, unit_s: float) -> None:
        self._samples.append(unit_s)
        self._unit_s = sorted(self._samples)[int(_LESS * len(self._samples))]

    def _recently_sent(self, now: float) -> float:
        """Seconds of work."""
        return self._sent_s * math.exp(min(0.0, self._sent_at - now) / _RATE_S)


def rendezvous(key: str, names: Iterable[str]) -> str:
    """Choose the replica that a key belongs to: the same in every process, and another only when that one is gone.
    Raises `ValueError` without names."""
    return max(names, key=lambda name: hashlib.blake2b(f"{key}\0{name}".encode(), digest_size=8).digest())


FLEET = Fleet()  # the one of this process: Serve gives its router no way to what sends the requests
