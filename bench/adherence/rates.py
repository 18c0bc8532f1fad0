"""Prompts for the quality gate, and what share of the pictures of them is right, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from demo.captions import Prompt, prompts
from demo.judge import ATTRIBUTES, Seen
from demo.pictures import SIZES

CONFIDENCE = 0.95
ALL = "all"


@dataclass(frozen=True)
class Case:
    """A picture to ask for: the sides in pixels."""

    prompt: Prompt
    width: int
    height: int
    seed: int

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def kind(self) -> str:
        if self.prompt.second is not None:
            return "two kinds"
        return "one object" if self.prompt.count == 1 else "some of a kind"


@dataclass(frozen=True)
class Judged:
    """What the judge saw in the picture of a case, and for every attribute that the prompt states whether it is so."""

    case: Case
    seen: Seen
    verdict: dict[str, bool]

    @property
    def right(self) -> bool:
        return all(self.verdict.values())

    @property
    def wrong(self) -> list[str]:
        """The attributes that are."""
        return [attribute for attribute in ATTRIBUTES if not self.verdict.get(attribute, True)]


@dataclass(frozen=True)
class Rate:
    """`right` of `count`, which is at least 1. low, high: the interval that has the true share with `CONFIDENCE`."""

    right: int
    count: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> Rate:
        """outcomes: at least one."""
        right, count = sum(outcomes), len(outcomes)
        low, high = wilson_interval(right, count)
        return cls(right, count, right / count, low, high)


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The score interval of a binomial share (Wilson 1927), which holds for few and for extreme outcomes too: of 60 out
    of 60 it is 94 to 100 %. count: above 0."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, weight = right / count, z * z / count
    centre = (share + weight / 2) / (1 + weight)
    spread = z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    # at the ends the two are equal, but for rounding
    return (0.0 if right == 0 else centre - spread), (1.0 if right == count else centre + spread)


def held_out_cases(count: int, size: tuple[int, int] | None) -> list[Case]:
    """The first `count` of a fixed sequence: prompts that training never sees, each with a seed of its own, of one size
    (width, height in pixels) or of all those of training in turn."""
    sizes = SIZES if size is None else (size,)
    return [
        Case(prompt, *sizes[number % len(sizes)], seed=number)
        for number, prompt in enumerate(prompts(0, count, kept_out=True))
    ]


def rates_by_attribute(judged: Sequence[Judged]) -> dict[str, Rate]:
    """`ALL`, and every attribute over the prompts that state it; none that no prompt states."""
    outcomes = {ALL: [one.right for one in judged]}
    for attribute in ATTRIBUTES:
        outcomes[attribute] = [one.verdict[attribute] for one in judged if attribute in one.verdict]
    return {name: Rate.of(values) for name, values in outcomes.items() if values}


def rates_by(judged: Iterable[Judged], group: Callable[[Case], str]) -> dict[str, Rate]:
    """Of pictures in which all is right, by the group of their case, in the order in which groups first come."""
    outcomes: dict[str, list[bool]] = {}
    for one in judged:
        outcomes.setdefault(group(one.case), []).append(one.right)
    return {name: Rate.of(values) for name, values in outcomes.items()}


def results_of(judged: Sequence[Judged]) -> dict[str, Any]:
    """All rates, and what is needed to draw each wrong picture again."""
    groups = {
        "rates": rates_by_attribute(judged),
        "by_size": rates_by(judged, lambda case: case.size),
        "by_kind": rates_by(judged, lambda case: case.kind),
    }
    return {
        "prompts": len(judged),
        **{name: {label: asdict(rate) for label, rate in rates.items()} for name, rates in groups.items()},
        "wrong": [
            {
                "prompt": one.case.prompt.text(),
                "width": one.case.width,
                "height": one.case.height,
                "seed": one.case.seed,
                "attributes": one.wrong,
                "seen": describe(one.seen),
            }
            for one in judged
            if not one.right
        ],
    }


def describe(seen: Seen) -> str:
    """For people, with pixels: `red star at 30,41 of radius 12 on blue`. A ? is what the judge could not name."""
    objects = [
        f"{item.colour or '?'} {item.shape or '?'} at {item.x:.0f},{item.y:.0f} of radius {item.radius:.0f}"
        for item in seen.objects
    ]
    return f"{', '.join(objects) or 'nothing'} on {seen.background or '?'}"
