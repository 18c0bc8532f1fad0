"""A cluster on a virtual clock: hosts, replicas, ingresses, and what they hear of each other, late."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from bench.cluster.simulation.arrivals import Arrival, percentile
from bench.cluster.simulation.replicas import Replica, alone_s
from bench.cluster.simulation.routers import Router

_HOP_S = 0.01  # from an ingress to a replica, and back
_LATE_S = (0.1, 0.6)  # from a replica's saying of itself until ingresses hear it, by way of the controller
_NOTICED_S = 3.0  # until the controller says that a replica is dead to those who have nothing there
_MOST_DEATHS = 3  # of replicas that had a request, before it is lost


@dataclass(frozen=True)
class Plan:
    """A cluster. stats_s: between two statistics of a replica. deaths: (from, until, share of the hosts) that die at
    once and come back together."""

    hosts: int = 100
    gpus: int = 8
    tp: int = 4
    ingresses: int = 16
    stats_s: float = 2.0
    queue: int = 256
    deaths: tuple[tuple[float, float, float], ...] = ()

    @property
    def per_host(self) -> int:
        return self.gpus // self.tp

    @property
    def replicas(self) -> int:
        return self.hosts * self.per_host


@dataclass
class Outcome:
    """What became of the requests. waits: seconds beyond those that each would have taken alone, by arrival."""

    waits: list[tuple[float, float]] = field(default_factory=list)
    refused: int = 0
    lost: int = 0
    moved: int = 0
    replayed: int = 0
    busy_s: list[float] = field(default_factory=list)  # of each replica

    def wait_s(self, share: float, since: float = 0.0, until: float = float("inf")) -> float:
        """A percentile of the waits of those that came in that time."""
        return percentile([wait for at, wait in self.waits if since <= at < until], share)

    @property
    def imbalance(self) -> float:
        """The busiest replica's time at work, of the mean's."""
        return max(self.busy_s) * len(self.busy_s) / (sum(self.busy_s) or 1.0)


class Cluster:
    """Runs arrivals through a plan, with a router for each ingress."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.now, self.plan, self.outcome = 0.0, plan, Outcome()
        self.random = Random(f"cluster {seed}")
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.replicas: dict[str, Replica] = {}
        for number in range(plan.replicas):
            name = f"replica{number}"
            self.replicas[name] = Replica(name, self, Random(f"{seed} {name}"), tp=plan.tp, queue=plan.queue)
        self._routers: list[Router] = []
        self._heard: list[set[str]] = []  # replicas that each ingress takes for alive
        self._attempts: dict[str, _Attempt] = {}  # that are at a replica, or on the way

    def after(self, seconds: float, happening: Callable[[], None]) -> None:
        """Have something happen, at once where `seconds` is not positive."""
        heapq.heappush(self._events, (self.now + max(0.0, seconds), next(self._order), happening))

    def run(self, arrivals: Iterable[Arrival], make: Callable[[Cluster, Random], Router], *, seconds: float) -> Outcome:
        """Put the arrivals through, until `seconds` and all of them have ended."""
        plan = self.plan
        names = list(self.replicas)
        self._routers = [make(self, Random(f"router {number}")) for number in range(plan.ingresses)]
        self._heard = [set(names) for _ in self._routers]
        for router in self._routers:
            router.replicas_are(names)
        for name in names:
            self.after(self.random.uniform(0, plan.stats_s), partial(self._say, name, seconds))
        for since, until, share in plan.deaths:
            hosts = self.random.sample(range(plan.hosts), max(1, round(share * plan.hosts)))
            dead = [name for number, name in enumerate(names) if number // plan.per_host in hosts]
            self.after(since, partial(self._die, dead))
            self.after(until, partial(self._revive, dead))
        waiting = iter(arrivals)
        self._next(waiting)
        while self._events:
            self.now, _, happening = heapq.heappop(self._events)
            happening()
        self.outcome.busy_s = [replica.busy_s for replica in self.replicas.values()]
        return self.outcome

    # ---- requests

    def _next(self, waiting: Iterable[Arrival]) -> None:
        arrival = next(iter(waiting), None)
        if arrival is not None:
            self.after(arrival.at - self.now, partial(self._come, arrival, waiting))

    def _come(self, arrival: Arrival, waiting: Iterable[Arrival]) -> None:
        _Attempt(self, arrival).send()
        self._next(waiting)

    # ---- what is heard of replicas

    def _say(self, name: str, until: float) -> None:
        replica = self.replicas[name]
        if replica.alive:
            said = replica.backlog_s, replica.waiting, replica.ongoing
            self.after(self.random.uniform(*_LATE_S), lambda: self._hear(name, *said))
        if self.now < until:
            self.after(self.plan.stats_s * self.random.uniform(0.9, 1.1), lambda: self._say(name, until))

    def _hear(self, name: str, backlog_s: float, waiting: int, ongoing: int) -> None:
        for router in self._routers:
            router.stats(name, backlog_s, waiting, ongoing - waiting)

    def _die(self, names: list[str]) -> None:
        for name in names:
            self.replicas[name].die()
        for ticket, attempt in self._attempts.items():
            if attempt.name in names:
                self.after(self.random.uniform(0.05, 0.5), partial(attempt.lost, ticket))
        self.after(_NOTICED_S, lambda: self.forget(names))

    def _revive(self, names: list[str]) -> None:
        for name in names:
            self.replicas[name].revive()
        for heard, router in zip(self._heard, self._routers, strict=True):
            heard.update(names)
            router.replicas_are([name for name in self.replicas if name in heard])

    def forget(self, names: Iterable[str], ingress: int | None = None) -> None:
        """Let one ingress, or all, know that replicas are dead."""
        for number, router in enumerate(self._routers):
            if ingress in (None, number) and not self._heard[number].isdisjoint(names):
                self._heard[number].difference_update(names)
                router.replicas_are([name for name in self.replicas if name in self._heard[number]])


class _Attempt:
    """A request from its arrival on: sent, and sent again where its replica refuses it or dies."""

    def __init__(self, cluster: Cluster, arrival: Arrival) -> None:
        self._cluster, self._arrival = cluster, arrival
        self._router = cluster._routers[arrival.ingress]
        self._tries, self._deaths, self._refusals, self._avoid = 0, 0, 0, list[str]()
        self.name, self._ticket, self._arrived = "", "", False

    def send(self) -> None:
        cluster = self._cluster
        self._tries, self._arrived = self._tries + 1, False
        self._ticket = f"{self._arrival.number}.{self._tries}"
        self.name = self._router.choose(self._ticket, self._arrival, self._avoid)
        cluster._attempts[self._ticket] = self
        cluster.after(_HOP_S, partial(self._arrive, self._ticket))

    def _arrive(self, ticket: str) -> None:
        cluster, replica = self._cluster, self._cluster.replicas[self.name]
        if ticket not in cluster._attempts:
            return
        if not replica.alive:
            cluster.after(_HOP_S, partial(self.lost, ticket))
            return
        self._arrived = True
        estimated_s = replica.add(self._arrival.number, self._arrival.shape, lambda: self._done(ticket))
        if estimated_s is None:
            cluster.after(_HOP_S, partial(self._refused, ticket))
            return
        cluster.after(_HOP_S, partial(self._accepted, ticket, max(0.0, estimated_s - _HOP_S), replica.ongoing))

    def _accepted(self, ticket: str, estimated_s: float, ongoing: int) -> None:
        if ticket not in self._cluster._attempts:
            return
        self._router.accepted(ticket, self.name, estimated_s, ongoing)
        if self._tries == 1 and self._router.waits_less_elsewhere(ticket):
            self._cluster.after(_HOP_S, partial(self._move, ticket))

    def _move(self, ticket: str) -> None:
        cluster = self._cluster
        if ticket in cluster._attempts and cluster.replicas[self.name].take_back(self._arrival.number):
            self._end()
            cluster.outcome.moved += 1
            self.send()

    def _done(self, ticket: str) -> None:
        cluster = self._cluster
        del cluster._attempts[ticket]
        took_s = cluster.now - self._arrival.at
        alone = alone_s(self._arrival.shape, cluster.plan.tp) + _HOP_S
        cluster.outcome.waits.append((self._arrival.at, max(0.0, took_s - alone)))
        name = self.name
        cluster.after(_HOP_S, lambda: self._router.ended(ticket, name))

    def _end(self) -> None:
        del self._cluster._attempts[self._ticket]
        self._router.ended(self._ticket, self.name)
        self._avoid.append(self.name)

    def _refused(self, ticket: str) -> None:
        if ticket not in self._cluster._attempts:
            return
        self._end()
        self._refusals += 1
        if self._refusals == 2:
            self._cluster.outcome.refused += 1
        else:
            self.send()

    def lost(self, ticket: str) -> None:
        """Hear that the replica has died that the request was sent to under this ticket."""
        if ticket not in self._cluster._attempts:
            return
        self._end()
        self._cluster.forget([self.name], self._arrival.ingress)
        self._deaths += self._arrived
        if self._deaths == _MOST_DEATHS:
            self._cluster.outcome.lost += 1
        else:
            self._cluster.outcome.replayed += 1
            self.send()
