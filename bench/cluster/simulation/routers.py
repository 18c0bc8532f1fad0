"""The routers that are compared: ours, and those of others, each one of an ingress that knows nothing of its
neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from random import Random
from typing import Protocol

from bench.cluster.simulation.arrivals import Arrival
from bench.cluster.simulation.replicas import Replica
from launcher.ray.fleet import Fleet
from launcher.ray.wire import Hints

_CACHE_S = 10.0  # for which Serve takes a replica's queue for what it was


class Router(Protocol):
    """What an ingress asks where to send a request, and tells what it hears. names: of replicas."""

    def replicas_are(self, names: Collection[str]) -> None:
        """Take these for the ones that there are."""

    def choose(self, ticket: str, arrival: Arrival, avoid: Collection[str]) -> str:
        """Name the replica to send a request to."""

    def stats(self, name: str, backlog_s: float, waiting: int, running: int) -> None:
        """Hear what a replica said of itself a while ago."""

    def accepted(self, ticket: str, name: str, estimated_s: float, ongoing: int) -> None:
        """Hear that a replica has taken a request: when it will be done, and how many it has."""

    def waits_less_elsewhere(self, ticket: str) -> bool:
        """Whether a request that was just accepted is to go to another replica."""

    def ended(self, ticket: str, name: str) -> None:
        """Hear that a request is done, was refused or is lost."""


class SecondsOfWork:
    """Ours: `launcher.ray.fleet`, as it is."""

    def __init__(self, clock: Callable[[], float], random: Random) -> None:
        self._fleet, self._names = Fleet(clock, random.random), list[str]()

    def replicas_are(self, names: Collection[str]) -> None:
        self._names = list(names)
        self._fleet.replicas_are(self._names)

    def choose(self, ticket: str, arrival: Arrival, avoid: Collection[str]) -> str:
        hints = Hints(ticket=ticket, avoid=tuple(avoid), work=arrival.shape.work)
        name = self._fleet.rank(self._names, hints)[0]
        self._fleet.sent(ticket, name, arrival.shape.work)
        return name

    def stats(self, name: str, backlog_s: float, waiting: int, running: int) -> None:
        self._fleet.stats(name, backlog_s, waiting, running)

    def accepted(self, ticket: str, name: str, estimated_s: float, ongoing: int) -> None:
        self._fleet.accepted(ticket, estimated_s)

    def waits_less_elsewhere(self, ticket: str) -> bool:
        return self._fleet.waits_less_elsewhere(ticket)

    def ended(self, ticket: str, name: str) -> None:
        self._fleet.ended(ticket)


class _Counting:
    """What others have in common: they count requests, and hear no statistics."""

    def __init__(self, clock: Callable[[], float], random: Random) -> None:
        self._clock, self._random, self._names = clock, random, list[str]()

    def replicas_are(self, names: Collection[str]) -> None:
        self._names = list(names)

    def stats(self, name: str, backlog_s: float, waiting: int, running: int) -> None:
        pass

    def accepted(self, ticket: str, name: str, estimated_s: float, ongoing: int) -> None:
        pass

    def waits_less_elsewhere(self, ticket: str) -> bool:
        return False

    def ended(self, ticket: str, name: str) -> None:
        pass

    def _allowed(self, avoid: Collection[str]) -> list[str]:
        return [name for name in self._names if name not in avoid] if avoid else self._names


class LeastInFlight(_Counting):
    """Fewest requests of this ingress' own, as most proxies do it."""

    def __init__(self, clock: Callable[[], float], random: Random) -> None:
        super().__init__(clock, random)
        self._in_flight: dict[str, int] = {}

    def choose(self, ticket: str, arrival: Arrival, avoid: Collection[str]) -> str:
        name = min(self._allowed(avoid), key=lambda name: (self._in_flight.get(name, 0), self._random.random()))
        self._in_flight[name] = self._in_flight.get(name, 0) + 1
        return name

    def ended(self, ticket: str, name: str) -> None:
        self._in_flight[name] -= 1


class TwoChoices(_Counting):
    """Power of two choices as Serve's own router has it: of two replicas by chance that with fewer requests, as it was
    when this ingress last had to do with it, within 10 s, with what it has sent and heard the end of since. One that it
    knows nothing of is asked, which here takes no time and is not counted."""

    def __init__(self, clock: Callable[[], float], random: Random, replicas: Mapping[str, Replica]) -> None:
        super().__init__(clock, random)
        self._replicas, self._known = replicas, dict[str, tuple[int, float]]()

    def choose(self, ticket: str, arrival: Arrival, avoid: Collection[str]) -> str:
        names = self._allowed(avoid)
        name = min(self._random.sample(names, min(2, len(names))), key=self._requests)
        self._know(name, self._requests(name) + 1)
        return name

    def accepted(self, ticket: str, name: str, estimated_s: float, ongoing: int) -> None:
        self._know(name, ongoing)

    def ended(self, ticket: str, name: str) -> None:
        known, at = self._known.get(name, (0, -math.inf))
        if at > self._clock() - _CACHE_S:
            self._know(name, max(0, known - 1))

    def _requests(self, name: str) -> int:
        known, at = self._known.get(name, (0, -math.inf))
        if at < self._clock() - _CACHE_S:
            known = self._replicas[name].ongoing
            self._know(name, known)
        return known

    def _know(self, name: str, requests: int) -> None:
        self._known[name] = requests, self._clock()


class TwoAsked(TwoChoices):
    """Power of two choices that asks both each time, so that it knows how many requests they have now: what it costs
    to ask is not counted."""

    def _requests(self, name: str) -> int:
        return self._replicas[name].ongoing


class Omniscient(_Counting):
    """Least seconds of work of all replicas as they are now, which nobody can know: how good it could be."""

    def __init__(self, clock: Callable[[], float], random: Random, replicas: Mapping[str, Replica]) -> None:
        super().__init__(clock, random)
        self._replicas = replicas

    def choose(self, ticket: str, arrival: Arrival, avoid: Collection[str]) -> str:
        return min(self._allowed(avoid), key=lambda name: (self._replicas[name].backlog_s, self._random.random()))
