"""Draws the same pictures in every way in turn, some prompts at a time, so that what else a machine does meanwhile
slows all ways alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import fmean, median

from PIL import Image
from tqdm import tqdm

from bench.adherence.drawing import DEADLINE_S, IN_FLIGHT, Draws
from bench.adherence.rates import Case, Judged
from bench.adherence.step_caching.likeness import psnr, ssim
from bench.adherence.step_caching.replay import replay
from bench.adherence.step_caching.ways import Model, Way
from demo.judge import look, verdict
from launcher import Result

ROUND = 50  # prompts


@dataclass(frozen=True)
class Pair:
    """A picture, RGB, and the one of the same prompt and seed without anything saved; likeness in decibels."""

    judged: Judged
    picture: Image.Image
    whole: Image.Image
    psnr: float


@dataclass
class Tally:
    """What came of a way, of each of its pictures in turn.

    seconds: of each round. evaluations: blocks that were run. real_evaluations: the same replayed at Krea 2's size.
    shown: the first pictures; worst: the least like the one without anything saved.
    """

    way: Way
    seconds: list[float] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    real_evaluations: list[int] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    shown: list[Pair] = field(default_factory=list)
    worst: Pair | None = None

    def add(self, pair: Pair, shown: int) -> None:
        """Count a picture. shown: how many to keep."""
        self.judged.append(pair.judged)
        self.psnr.append(pair.psnr)
        self.ssim.append(ssim(pair.whole, pair.picture))
        if len(self.shown) < shown:
            self.shown.append(pair)
        if self.worst is None or pair.psnr < self.worst.psnr:
            self.worst = pair

    def times_as_fast(self, first: Tally) -> float:
        """Compare seconds, round by round of the same prompts. Returns the median."""
        return median(other / own for own, other in zip(self.seconds, first.seconds, strict=True))

    def times_fewer_blocks(self, of: int) -> float:
        """Compare evaluations with those of a picture of which nothing is saved, which are `of`."""
        return of / fmean(self.evaluations)

    def changed(self, first: Tally) -> tuple[list[int], list[int]]:
        """List the seeds of pictures that are right in the first way alone, and in this one alone: lost and gained."""
        pairs = [
            (before.right, after.right, after.case.seed)
            for before, after in zip(first.judged, self.judged, strict=True)
        ]
        return [seed for was, is_, seed in pairs if was > is_], [seed for was, is_, seed in pairs if was < is_]


def draw_rounds(
    client: Draws, model: Model, ways: Sequence[Way], cases: Sequence[Case], shown: int = 0, size: int = ROUND
) -> list[Tally]:
    """Draw and judge every case in every way. Returns a tally of each, in their order; the first way is that with which
    the others are compared. shown: how many of the first pictures to keep; size: prompts of a round. Raises what
    `Client.generate` does."""
    tallies = [Tally(way) for way in ways]
    _draw(client, ways[0], cases[:IN_FLIGHT])  # what is slow the first time
    with tqdm(total=len(cases) * len(ways), unit="picture", leave=False, disable=None) as bar:
        for number, part in enumerate(_parts(cases, size)):
            results = {}
            for place in range(len(ways)):  # each round begins with another one
                tally = tallies[(number + place) % len(ways)]
                bar.set_description(tally.way.name)
                begun = time.perf_counter()
                results[tally.way] = _draw(client, tally.way, part)
                tally.seconds.append(time.perf_counter() - begun)
                bar.update(len(part))
            whole = [_picture(result) for result in results[ways[0]]]
            for tally in tallies:
                for case, result, picture in zip(part, results[tally.way], whole, strict=True):
                    _count_blocks(tally, model, result)
                    tally.add(_pair(case, _picture(result), picture), shown)
    return tallies


def _parts(cases: Sequence[Case], size: int) -> Iterator[Sequence[Case]]:
    return (cases[first : first + size] for first in range(0, len(cases), size))


def _draw(client: Draws, way: Way, cases: Sequence[Case]) -> list[Result]:
    def draw(case: Case) -> Result:
        return client.generate(
            case.prompt.text(),
            width=case.width,
            height=case.height,
            seed=case.seed,
            timeout_s=DEADLINE_S,
            **way.parameters,
        )

    pool = ThreadPoolExecutor(IN_FLIGHT)
    try:
        return list(pool.map(draw, cases))
    finally:
        pool.shutdown(cancel_futures=True)


def _picture(result: Result) -> Image.Image:
    return result.image.convert("RGB")


def _pair(case: Case, picture: Image.Image, whole: Image.Image) -> Pair:
    seen = look(picture)
    return Pair(Judged(case, seen, verdict(case.prompt, seen)), picture, whole, psnr(whole, picture))


def _count_blocks(tally: Tally, model: Model, result: Result) -> None:
    made, real = model.schedule(tally.way), model.real_schedule(tally.way)
    (computed,) = result.computed
    if computed is None:  # nothing was saved
        tally.evaluations.append(made.block_evaluations)
        tally.real_evaluations.append(real.block_evaluations)
    else:
        tally.evaluations.append(computed.block_evaluations)
        tally.real_evaluations.append(replay(computed.steps, made, real))
