"""One image, stage by stage: by the engine, and by diffusers' pipeline."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from bench.engines.engine import STEPS_AHEAD, Engine
from bench.engines.real_size import random_prompt
from bench.engines.setup import Setup
from bench.measure.files import encode_file
from engine.rank.step_handle import StepHandle
from engine.step import StepTimes

if TYPE_CHECKING:
    from bench.engines.peer import Peer


@dataclass(frozen=True)
class Stages:
    """Seconds of one image. `wall_s` is from the prompt's ids to the JPEG file, or to the pixels without Pillow."""

    wall_s: float
    encode_s: float
    denoise_s: float
    decode_s: float
    file_s: float | None
    png_s: float | None

    @property
    def outside_s(self) -> float:
        """Of the wall clock, what no stage accounts for."""
        return self.wall_s - (self.encode_s + self.denoise_s + self.decode_s + (self.file_s or 0.0))

    @classmethod
    def mean(cls, images: Sequence[Stages]) -> Stages:
        """Of every field."""
        return cls(
            wall_s=fmean(image.wall_s for image in images),
            encode_s=fmean(image.encode_s for image in images),
            denoise_s=fmean(image.denoise_s for image in images),
            decode_s=fmean(image.decode_s for image in images),
            file_s=_mean([image.file_s for image in images]),
            png_s=_mean([image.png_s for image in images]),
        )


def make_image(
    engine: Engine, side: int, steps: int, sizes: dict[str, int] | None = None, prompt_tokens: int | None = None
) -> Stages:
    """One image, alone in the engine. `sizes` gets the bytes of its files by format. prompt_tokens: the setup's."""
    began = time.perf_counter()
    (job,) = engine.new_jobs(1, side, steps, prompt_tokens)
    under_way: deque[StepHandle] = deque()
    times: list[StepTimes] = []
    for index in range(steps):
        is_last = index == steps - 1
        under_way.append(
            engine.execute(
                start=() if index else (job,), denoise=(job.job_id,), decode=(job.job_id,) if is_last else ()
            )
        )
        if len(under_way) == STEPS_AHEAD:
            times.append(under_way.popleft().wait())
    times += [handle.wait() for handle in under_way]
    denoised = time.perf_counter()
    image, decoded = engine.next_image()
    assert image.job_id == job.job_id
    received = time.perf_counter()
    file = encode_file(image.rgb, side, "jpeg")
    ended = time.perf_counter()
    png = encode_file(image.rgb, side, "png")
    png_ended = time.perf_counter()
    if file is not None and png is not None and sizes is not None:
        sizes |= {"jpeg": len(file), "png": len(png)}
    return Stages(
        wall_s=ended - began,
        encode_s=sum(one.encode_s for one in times),
        denoise_s=sum(one.denoise_s for one in times),
        decode_s=decoded - denoised,
        file_s=None if file is None else ended - received,
        png_s=None if png is None else png_ended - ended,
    )


def peer_maker(
    peer: Peer, setup: Setup, side: int, steps: int, mode: str, seeds: Iterator[int], batch: int = 1
) -> Callable[[], Stages]:
    """Makes `batch` images of the peer's at once, each with a prompt and a seed of its own, and their files. The stages
    are those of all of them."""

    def make() -> Stages:
        numbers = list(itertools.islice(seeds, batch))
        prompts = [random_prompt(setup.model, number, setup.prompt_tokens) for number in numbers]
        began = time.perf_counter()
        images = peer.make_images(prompts, side, steps, numbers, mode)
        received = time.perf_counter()
        files = [encode_file(image.picture.tobytes(), side, "jpeg") for image in images]
        ended = time.perf_counter()
        file_s = None if None in files else ended - received
        first = images[0]  # each has the times of the whole
        return Stages(ended - began, first.encode_s, first.denoise_s, first.decode_s, file_s, None)

    return make


def _mean(values: Sequence[float | None]) -> float | None:
    """None if one is."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
