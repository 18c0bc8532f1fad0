"""Paired differences: the same request to two servers, in an order that is drawn, and what the pairs say."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import httpx

from bench.cluster.cases import Case
from bench.measure.timing import Spread, percentile
from bench.serve.traffic import RequestFailed

WARM_UP = 2  # pairs of a case that do not count
LEAST = 6  # pairs, below which nothing can be said of the median with such confidence
CONFIDENCE = 0.95
MOST_ENGINE = 1.1  # times as long as in a server may the engine take itself in a cluster
SEED = 0  # of the order


@dataclass(frozen=True)
class Difference:
    """What pairs differ by: the median, an interval that holds it with `CONFIDENCE`, the 10th and 90th percentile."""

    median: float
    low: float
    high: float
    p10: float
    p90: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Difference:
        """differences: at least `LEAST`."""
        ordered = sorted(differences)
        below = interval_of_median(len(ordered))
        median, p10, p90 = (percentile(ordered, percent) for percent in (50, 10, 90))
        return cls(median, ordered[below], ordered[-1 - below], p10, p90)


def interval_of_median(count: int) -> int:
    """How many of `count` ordered values lie on either side of the narrowest interval that holds the median of what
    they were drawn from with `CONFIDENCE`: each is below it with even chances, so their number is binomial. count: at
    least `LEAST`."""
    outside, chance = 0, 0.0
    while (chance := chance + math.comb(count, outside) / 2.0**count) <= (1 - CONFIDENCE) / 2:
        outside += 1
    return outside - 1


@dataclass(frozen=True)
class Overhead:
    """A case's pairs. all: how much longer the cluster took, in seconds; outside: the same without what the engines
    count as their own time; engine: the ratio of these. The last two are None where engines count nothing."""

    case: Case
    serve: Spread
    cluster: Spread
    all: Difference
    outside: Difference | None
    engine: Difference | None

    @property
    def added(self) -> Difference:
        """What the bar is for."""
        return self.outside or self.all

    @property
    def missed(self) -> str | None:
        """Which bar was missed, in words."""
        bar_s = self.case.bar_s
        if bar_s is not None and self.added.median > bar_s:
            return f"{1e3 * self.added.median:.1f} ms more, where at most {1e3 * bar_s:g} ms were to be"
        if self.engine is not None and self.engine.low > MOST_ENGINE:
            return f"the engine took {self.engine.median:.2f} times as long itself"
        return None


async def measure(case: Case, serve: httpx.AsyncClient, cluster: httpx.AsyncClient, pairs: int) -> Overhead:
    """Raises `RequestFailed`, which says of which server, for a request that either of them does not answer."""
    count = max(LEAST, round(pairs * case.share))
    order = Random(SEED)
    times: list[tuple[float, float]] = []
    engine: list[tuple[float, float]] = []
    for number in range(WARM_UP + count):
        taken: dict[str, tuple[float, float]] = {}
        servers = [("serve", serve), ("cluster", cluster)]
        order.shuffle(servers)
        for name, client in servers:
            began = time.perf_counter()
            try:
                engine_s = await case.ask(client, number)
            except (RequestFailed, httpx.HTTPError) as error:
                raise RequestFailed("failed", f"{name}, {case.what}: {str(error) or type(error).__name__}") from None
            taken[name] = (time.perf_counter() - began, engine_s)
        if number >= WARM_UP:
            (serve_s, serve_engine_s), (cluster_s, cluster_engine_s) = taken["serve"], taken["cluster"]
            times.append((serve_s, cluster_s))
            engine.append((serve_engine_s, cluster_engine_s))
    counted = all(map(all, engine))
    outside = [b - b_engine - (a - a_engine) for (a, b), (a_engine, b_engine) in zip(times, engine, strict=True)]
    return Overhead(
        case,
        Spread.of([serve_s for serve_s, _ in times]),
        Spread.of([cluster_s for _, cluster_s in times]),
        Difference.of([cluster_s - serve_s for serve_s, cluster_s in times]),
        Difference.of(outside) if counted else None,
        Difference.of([cluster_s / serve_s for serve_s, cluster_s in engine]) if counted else None,
    )
