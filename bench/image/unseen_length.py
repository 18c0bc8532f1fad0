"""What an image costs whose prompt has a length that no image had before: attention may have no plan for it yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.engines.engine import Engine
from bench.measure.timing import Spread


@dataclass(frozen=True)
class UnseenLength:
    """Seconds of images whose prompts' length was new, and of as many after them whose was not. lengths: of the new
    ones, in prompt tokens; difference_s: between the medians. plan_s: seconds that the building of plans took after
    each of the new ones, in which no image could begin; 0 for an attention that needs none."""

    lengths: tuple[int, ...]
    unseen_s: Spread
    seen_s: Spread
    difference_s: float
    plan_s: Spread


def measure_unseen(engine: Engine, make: Callable[[int], float], pairs: int) -> UnseenLength | None:
    """Have `pairs` pairs of images made, A B B A: one whose prompt is longer than any before, and one as long as the
    image before it; after each new one attention gets its plan. `make` takes prompt tokens and returns seconds. Fewer
    pairs if the time is up or no length is left; None without any."""
    lengths: list[int] = []
    unseen: list[float] = []
    seen: list[float] = []
    plans: list[float] = []

    def make_new(tokens: int) -> None:
        unseen.append(make(tokens))
        plans.append(engine.build_plans())

    for pair in range(pairs):
        new = engine.unseen_length()
        if new is None or (pair and engine.setup.budget.spent):
            break
        if pair % 2:
            seen.append(make(lengths[-1]))
            make_new(new)
        else:
            make_new(new)
            seen.append(make(new))
        lengths.append(new)
    if not lengths:
        return None
    new_s, known_s = Spread.of(unseen), Spread.of(seen)
    return UnseenLength(tuple(lengths), new_s, known_s, new_s.median - known_s.median, Spread.of(plans))
