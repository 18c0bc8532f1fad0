"""A server in simulated time whose attention needs a plan for every length: prompts as people write them, one image at
a time, arrivals at random at half of what it can do.

    python -m tests.engine.kernels.attention.simulated_prompts    # what docs/speed.md says of it
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles

from engine.kernels.attention.plans import PlanSchedule

BUILD_S = 0.4
READS_S = 1e-4  # between the end of a build and the beginning of an image that has come meanwhile
Lengths = Callable[[random.Random], int]


def short(random: random.Random) -> int:
    """Typed prompts and captions: half have up to 15 tokens, one in six 25 and more, one in a hundred 48."""
    return max(3, min(507, round(random.lognormvariate(2.71, 0.5))))


def expanded(random: random.Random) -> int:
    """What a language model makes of those when asked for a paragraph: 120 tokens, give or take 25."""
    return max(20, min(507, round(random.gauss(120, 25))))


def mixed(random: random.Random) -> int:
    """Three short ones to two expanded."""
    return short(random) if random.random() < 0.6 else expanded(random)


DISTRIBUTIONS: dict[str, Lengths] = {"short": short, "mixed": mixed, "expanded": expanded}
SQUARE = ((4096, 1.0),)
# image tokens and shares of requests: 1024², 1280 × 768 and upright, 512², 1536 × 1024, 2048²
SIZES = ((4096, 0.5), (3840, 0.25), (1024, 0.15), (6144, 0.05), (16384, 0.05))


@dataclass(frozen=True)
class Outcome:
    """waited: share of images that came while a plan was built, the longest so long; planned: of each image, whether
    cuDNN served it; shapes: how many there were."""

    waited: float
    longest_s: float
    planned: tuple[bool, ...]
    work: tuple[float, ...]
    plans: int
    shapes: int

    def share(self, first: int, last: int) -> float:
        return fmean(self.planned[first:last])

    def share_of_work(self, first: int, last: int) -> float:
        done = sum(
            work for work, planned in zip(self.work[first:last], self.planned[first:last], strict=True) if planned
        )
        return done / sum(self.work[first:last])


def serve(
    lengths: Lengths,
    service_s: float,
    seed: int,
    *,
    sizes: Sequence[tuple[int, float]] = SQUARE,
    images: int = 1000,
    load: float = 0.5,
    schedule: PlanSchedule | None = None,
) -> Outcome:
    """As the loop of `launcher.ranks.worker` runs: it waits as long as the schedule says, builds a plan, looks anew."""
    schedule = schedule or PlanSchedule()
    draw = random.Random(seed)
    requests, arrival = [], 0.0
    for _ in range(images):
        arrival += draw.expovariate(load / service_s)
        size = draw.choices([size for size, _ in sizes], [share for _, share in sizes])[0]
        requests.append((arrival, size + lengths(draw)))
    now = longest = 0.0
    waited = begun = 0
    planned, work = [], []
    for index, (arrival, tokens) in enumerate(requests):
        building_since = now
        while (wait_s := schedule.wait_s(now)) is not None and now + wait_s < arrival:
            building_since = now + wait_s
            now = building_since + BUILD_S
            shape = schedule.next()
            assert shape is not None
            schedule.built(shape, now)
        together = sum(building_since < other < now for other, _ in requests[index : index + 100])
        if together:
            waited += together
            longest = max(longest, now - arrival)
        now = max(now + READS_S, arrival)
        beginning = max(together, 1) if begun <= index else 0  # who came with it is begun with it
        schedule.worked(now, beginning)
        begun += beginning
        planned.append(schedule.has(tokens))
        work.append(float(tokens) ** 2)
        if not planned[-1]:
            schedule.met(tokens, work[-1])
        now += service_s
        schedule.worked(now)
    shapes = {tokens for _, tokens in requests}
    return Outcome(waited / images, longest, tuple(planned), tuple(work), schedule.plans, len(shapes))


def main() -> None:
    for name, sizes in (("1024²", SQUARE), ("sizes mixed", SIZES)):
        for service_s in (1.3, 0.9):
            for of, lengths in DISTRIBUTIONS.items():
                outcomes = [serve(lengths, service_s, seed, sizes=sizes) for seed in range(100)]
                later = sorted(outcome.share(500, 1000) for outcome in outcomes)
                print(
                    f"{name}, {service_s} s, {of}: waited {fmean(one.waited for one in outcomes):.2%}, "
                    f"worst {max(one.waited for one in outcomes):.2%}, {max(one.longest_s for one in outcomes):.2f} s; "
                    f"images 1-500 {fmean(one.share(0, 500) for one in outcomes):.1%}, 501-1000 {fmean(later):.1%}, "
                    f"tenth worst {quantiles(later, n=10)[0]:.1%}, worst {later[0]:.1%}; "
                    f"of the work {fmean(one.share_of_work(500, 1000) for one in outcomes):.1%}; "
                    f"{fmean(one.plans for one in outcomes):.0f} plans for {fmean(one.shapes for one in outcomes):.0f}"
                )


if __name__ == "__main__":
    main()
