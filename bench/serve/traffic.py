"""Requests for a server of images, sent in a closed or an open loop, and the statistics of what came back."""

from __future__ import annotations

import asyncio
import io
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

import numpy as np
from PIL import Image as PIL

from engine.errors import ArgumentError

REFUSED = "refused"  # HTTP 429, or RPC's queue_full: the server said so at once, and broke no promise
SEED = 0  # of the mix and of the arrivals
PROMPTS = (
    "a fox in the snow, oil on canvas",
    "a lighthouse in a storm, seen from the sea, long exposure, dramatic light",
    "portrait of an old fisherman",
    "an isometric drawing of a small library with reading lamps, plants on the sills and a cat asleep on a chair",
    "macro photograph of dew on a spider's web at dawn",
    "the words OPEN LATE in pink neon over a diner, rain on the street, a parked car, film grain",
    "paper cut-out of a mountain village",
    "a bowl of ramen",
)


@dataclass(frozen=True)
class Shape:
    """One kind of request in a mix. Sizes in pixels; guidance in the server's own scale, None for its default."""

    width: int
    height: int
    weight: float
    steps: int
    guidance: float | None = None


@dataclass(frozen=True)
class ImageRequest:
    """One image to ask for."""

    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float | None


@dataclass(frozen=True)
class Answer:
    """An image file, and the seconds that the server says its stages took, if it does."""

    file: bytes = field(repr=False)
    timings: dict[str, float]


class RequestFailed(Exception):
    """A request without its image; `kind` is what failures are counted by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Target(Protocol):
    """A server under load."""

    async def generate(self, request: ImageRequest) -> Answer:
        """Raises `RequestFailed`."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request, `latency_s` after it was due. `failure` is the kind of it, None for an image."""

    latency_s: float
    timings: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    message: str = ""

    def latency_or_raise(self) -> float:
        """Raises `RequestFailed` if there is no image."""
        if self.failure is not None:
            raise RequestFailed(self.failure, self.message)
        return self.latency_s


@dataclass(frozen=True)
class Run:
    """The outcomes of a load, and the seconds from its first request to its last answer."""

    seconds: float
    outcomes: list[Outcome]

    @property
    def images(self) -> int:
        return sum(outcome.failure is None for outcome in self.outcomes)

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    @property
    def failures(self) -> dict[str, int]:
        """How many of each kind."""
        return dict(Counter(outcome.failure for outcome in self.outcomes if outcome.failure is not None))

    def seconds_by_stage(self) -> dict[str, Summary]:
        """Of the requests that got their image: the latency, the server's own timings, and what is between the two."""
        values: dict[str, list[float]] = {"latency": []}
        for outcome in self.outcomes:
            if outcome.failure is None:
                values["latency"].append(outcome.latency_s)
                for stage, seconds in outcome.timings.items():
                    values.setdefault(stage, []).append(seconds)
                if "total" in outcome.timings:
                    values.setdefault("outside", []).append(outcome.latency_s - outcome.timings["total"])
        return {stage: Summary.of(seconds) for stage, seconds in values.items() if seconds}


@dataclass(frozen=True)
class Summary:
    """Of seconds; percentiles are interpolated between the two nearest values."""

    count: int
    mean: float
    median: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """values: at least one."""
        percentiles: Any = np.percentile(values, (50, 90, 99))
        median, p90, p99 = map(float, percentiles)
        return cls(len(values), sum(values) / len(values), median, p90, p99, max(values))


def parse_mix(text: str) -> tuple[Shape, ...]:
    """`WIDTHxHEIGHT:WEIGHT:STEPS[:GUIDANCE]`, comma-separated. Raises `ArgumentError`."""
    return tuple(_parse_shape(part) for part in text.split(","))


def _parse_shape(text: str) -> Shape:
    size, *numbers = text.split(":")
    try:
        width, height = (int(side) for side in size.split("x"))
        weight, steps, *guidance = (float(number) for number in numbers)
        shape = Shape(width, height, weight, int(steps), *guidance)
    except (TypeError, ValueError, OverflowError):
        raise _bad_shape(text) from None
    is_possible = min(width, height) > 0 and 0 < weight < float("inf") and steps == shape.steps > 0
    if not is_possible or not all(0 <= scale < float("inf") for scale in guidance):
        raise _bad_shape(text)
    return shape


def _bad_shape(text: str) -> ArgumentError:
    allowed = "WIDTHxHEIGHT:WEIGHT:STEPS[:GUIDANCE] with positive numbers, comma-separated"
    return ArgumentError.of("mix", allowed, text)


def draw_requests(mix: Sequence[Shape], count: int, *, first: int = 0) -> list[ImageRequest]:
    """`count` requests numbered from `first` on; each number has a prompt of its own, which no cache can know."""
    shapes = Random(SEED).choices(mix, [shape.weight for shape in mix], k=count)
    return [
        ImageRequest(
            prompt=f"{PROMPTS[number % len(PROMPTS)]}, number {number}",
            seed=number,
            width=shape.width,
            height=shape.height,
            steps=shape.steps,
            guidance=shape.guidance,
        )
        for number, shape in enumerate(shapes, start=first)
    ]


async def closed_loop(target: Target, requests: Sequence[ImageRequest], concurrency: int, deadline_s: float) -> Run:
    """`concurrency` users, each of whom asks for the next image when the last one is there."""
    outcomes: list[Outcome] = []
    waiting = iter(requests)

    async def user() -> None:
        for request in waiting:
            outcomes.append(await ask(target, request, deadline_s))

    return await _timed([user for _ in range(concurrency)], outcomes)


async def open_loop(target: Target, requests: Sequence[ImageRequest], rate: float, deadline_s: float) -> Run:
    """Requests arrive as a Poisson process of `rate` a second, whether or not the earlier ones are done.

    Latency counts from when a request was due, so that a late start of ours would not flatter the server.
    """
    outcomes: list[Outcome] = []
    random = Random(SEED)
    due = time.perf_counter()

    def arrival(request: ImageRequest, due: float) -> Callable[[], Awaitable[None]]:
        async def arrive() -> None:
            await asyncio.sleep(due - time.perf_counter())
            outcomes.append(await ask(target, request, deadline_s, due=due))

        return arrive

    arrivals = []
    for request in requests:
        arrivals.append(arrival(request, due))
        due += random.expovariate(rate)
    return await _timed(arrivals, outcomes)


async def _timed(users: Sequence[Callable[[], Awaitable[None]]], outcomes: list[Outcome]) -> Run:
    began = time.perf_counter()
    await asyncio.gather(*(user() for user in users))
    return Run(time.perf_counter() - began, outcomes)


async def ask(target: Target, request: ImageRequest, deadline_s: float, *, due: float | None = None) -> Outcome:
    """One request, which was due at `due` of `time.perf_counter`, by default now. A failure is an outcome too."""
    if due is None:
        due = time.perf_counter()
    try:
        async with asyncio.timeout(deadline_s):
            answer = await target.generate(request)
        latency_s = time.perf_counter() - due
        _check_image(answer.file, request)
    except TimeoutError:
        return Outcome(time.perf_counter() - due, failure="deadline", message=f"no answer within {deadline_s:g} s")
    except RequestFailed as error:
        return Outcome(time.perf_counter() - due, failure=error.kind, message=str(error))
    return Outcome(latency_s, answer.timings)


def _check_image(file: bytes, request: ImageRequest) -> None:
    """A smaller image than the one asked for would make a server look fast."""
    try:
        with PIL.open(io.BytesIO(file)) as image:
            size = image.size
    except (OSError, ValueError):
        raise RequestFailed("no image", f"the answer has {len(file)} bytes that are no image") from None
    if size != (request.width, request.height):
        asked, got = f"{request.width}x{request.height}", f"{size[0]}x{size[1]}"
        raise RequestFailed("wrong size", f"asked for {asked}, got {got}")
