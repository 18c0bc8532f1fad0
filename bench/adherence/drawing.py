"""Draws the same pictures in different ways, by engines that are started for it, and has them judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, Unpack

from PIL import Image
from tqdm import tqdm

from bench.adherence.rates import Case, Judged
from demo.judge import look, verdict
from launcher import Result, launch
from launcher.client.parameters import Parameters

IN_FLIGHT = 16
DEADLINE_S = 600.0  # of a picture, its time in the queue included


@dataclass(frozen=True)
class Engine:
    """What an engine is launched with."""

    model: str
    tp: int
    device: str
    dtype: str
    quantization: str
    attention: str


@dataclass(frozen=True)
class Way:
    """A way to draw pictures. steps, guidance: None for the model's own."""

    name: str
    engine: Engine
    steps: int | None
    guidance: float | None

    def changed(self, choice: str, value: Any) -> Way:
        """This way but for one of its fields, or of its engine's, and named so."""
        name = f"{choice} {value:g}" if isinstance(value, float) else f"{choice} {value}"
        if choice in ("steps", "guidance"):
            return replace(self, name=name, **{choice: value})
        return replace(self, name=name, engine=replace(self.engine, **{choice: value}))


@dataclass(frozen=True)
class Drawn:
    """A picture, RGB, and what the judge said of it."""

    judged: Judged
    picture: Image.Image


class Draws(Protocol):
    """What is asked of a `Client`, from several threads at once."""

    def generate(self, prompt: str, **parameters: Unpack[Parameters]) -> Result:
        """See `Client.generate`."""


def draw_ways(engine: Engine, ways: Iterable[Way], cases: Sequence[Case]) -> Iterator[tuple[Way, list[Drawn]]]:
    """Every way with the pictures of all cases, in their order; `engine` is that of all ways, and runs while this is
    iterated over. Raises what `launch` and `Client.generate` do."""
    with launch(**asdict(engine), warm_up=False) as client:
        for way in ways:
            yield way, draw_and_judge(client, way, cases)


def draw_and_judge(client: Draws, way: Way, cases: Sequence[Case]) -> list[Drawn]:
    """In the order of the cases, some of them in flight at once. Raises what `Client.generate` does."""

    def draw(case: Case) -> Image.Image:
        result = client.generate(
            case.prompt.text(),
            width=case.width,
            height=case.height,
            seed=case.seed,
            steps=way.steps,
            guidance=way.guidance,
            timeout_s=DEADLINE_S,
        )
        return result.images[0].convert("RGB")

    drawn = []
    pool = ThreadPoolExecutor(IN_FLIGHT)
    try:
        pictures = tqdm(
            pool.map(draw, cases), desc=way.name, total=len(cases), unit="picture", leave=False, disable=None
        )
        for case, picture in zip(cases, pictures, strict=True):
            seen = look(picture)
            drawn.append(Drawn(Judged(case, seen, verdict(case.prompt, seen)), picture))
    finally:
        pool.shutdown(cancel_futures=True)
    return drawn
