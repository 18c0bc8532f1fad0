"""What an image costs whose prompt has a length that no image had before: attention may have to build a plan for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.runner import Engine
from bench.timing import Spread


@dataclass(frozen=True)
class UnseenLength:
    """Seconds of images whose prompts' length was new, and of as many after them whose was not. lengths: of the new
    ones, in prompt tokens; difference_s: between the medians."""

    lengths: tuple[int, ...]
    unseen_s: Spread
    seen_s: Spread
    difference_s: float


def measure_unseen(engine: Engine, make: Callable[[int], float], pairs: int) -> UnseenLength | None:
    """Have `pairs` pairs of images made, A B B A: one whose prompt is longer than any before, and one as long as the
    image before it. `make` takes prompt tokens and returns seconds. Fewer pairs if the time is up or no length is left;
    None without any."""
    lengths: list[int] = []
    unseen: list[float] = []
    seen: list[float] = []
    for pair in range(pairs):
        new = engine.unseen_length()
        if new is None or (pair and engine.setup.budget.spent):
            break
        if pair % 2:
            seen.append(make(lengths[-1]))
            unseen.append(make(new))
        else:
            unseen.append(make(new))
            seen.append(make(new))
        lengths.append(new)
    if not lengths:
        return None
    new_s, known_s = Spread.of(unseen), Spread.of(seen)
    return UnseenLength(tuple(lengths), new_s, known_s, new_s.median - known_s.median)
