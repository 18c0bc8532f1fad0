"""Who asks for what, and when: the same for every router that is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

_BURST_S, _CALM_S = 4.0, 12.0  # on average
_BURST = 2.2  # times the mean rate, while one lasts


@dataclass(frozen=True)
class Shape:
    """One kind of request. side: of its square images, in pixels; share: of all requests."""

    side: int
    steps: int
    images: int
    share: float

    @property
    def work(self) -> float:
        """As the ingress has it in its hints: denoise steps times pixels."""
        return float(self.steps * self.images * self.side * self.side)


SHAPES = (
    Shape(512, 8, 1, 0.35),
    Shape(1024, 8, 1, 0.45),
    Shape(1536, 8, 1, 0.10),
    Shape(2048, 8, 1, 0.05),
    Shape(1024, 8, 4, 0.05),
)


@dataclass(frozen=True)
class Arrival:
    """A request at an ingress."""

    number: int
    at: float
    shape: Shape
    ingress: int


def arrivals(
    random: Random, rate: Callable[[float], float], most: float, *, seconds: float, ingresses: int
) -> Iterator[Arrival]:
    """Give the arrivals of a Poisson process whose rate a second is `rate(at)`, `most` at most."""
    at, number = 0.0, 0
    shares = [shape.share for shape in SHAPES]
    while (at := at + random.expovariate(most)) < seconds:
        shape, ingress, chance = random.choices(SHAPES, shares)[0], random.randrange(ingresses), random.random()
        if chance * most < rate(at):
            yield Arrival(number, at, shape, ingress)
            number += 1


def bursty(random: Random, mean: float, seconds: float) -> tuple[Callable[[float], float], float]:
    """Make a rate of that mean that jumps between bursts and calm, and the most that it is."""
    calm = mean * (_BURST_S + _CALM_S - _BURST * _BURST_S) / _CALM_S
    ends: list[float] = []
    while not ends or ends[-1] < seconds:
        ends.append((ends[-1] if ends else 0.0) + random.expovariate(1 / (_CALM_S if len(ends) % 2 == 0 else _BURST_S)))

    def rate(at: float) -> float:
        return calm if _phase(ends, at) % 2 == 0 else mean * _BURST

    return rate, mean * _BURST


def _phase(ends: list[float], at: float) -> int:
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if ends[middle] <= at else (low, middle)
    return low


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
