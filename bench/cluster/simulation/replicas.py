"""An engine that only takes time: the real scheduler, and steps that last as long as a model of GPUs predicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Protocol

from bench.cluster.simulation.arrivals import SHAPES, Shape
from bench.engines.real_size import KREA2
from engine.config.degrees import Degrees
from engine.scheduling.cost import CostModel, Work
from engine.scheduling.scheduler import Scheduler
from engine.step import Job, Step
from launcher.auto_mode.prediction import Rates, StepModel

_TOKEN_BUDGET = 8192
_TEXT_TOKENS, _PROMPT_TOKENS = 64, 100  # in a segment; that are encoded, with what stands around a prompt
_ENCODE_S, _DECODE_S = 0.0135, 0.022  # of a prompt, and of 1024²: measured on one H200 (bench/results), of one rank
_STEPS_AHEAD = 2
_NOISE = 0.05  # standard deviation of a step's time, as a part of it


class Calendar(Protocol):
    """Where a replica notes what will happen."""

    now: float

    def after(self, seconds: float, happening: Callable[[], None]) -> None:
        """Have something happen."""


@cache
def costs(tp: int) -> CostModel:
    """What work costs on H200s with this tensor parallelism. Denoise steps are predicted, not measured: by the model
    with which `--parallel auto` chooses (docs/several-gpus.md)."""
    model = StepModel(KREA2.transformer, Rates())
    packed = [(1, 256), (1, 512), (4, 512), (8, 512), (1, 1024), (2, 1024), (1, 1536), (1, 2048)]
    samples = []
    for images, side in packed:
        segments = [(_TEXT_TOKENS, _image_tokens(side))] * images
        seconds = sum(model.predict(segments, Degrees(tp, 1, 1)))
        samples.append((Work.of(map(sum, segments)), seconds))
    result = CostModel()
    result.fit(samples)
    result.correct_encode(_PROMPT_TOKENS, _ENCODE_S)
    result.correct_decode(1024 * 1024, _DECODE_S)
    return result


def alone_s(shape: Shape, tp: int) -> float:
    """Seconds of a request on a replica that has nothing else to do: of its images' steps one after the other as far
    as they do not fit into one, and the last image's decoding."""
    model, tokens = costs(tp), _image_tokens(shape.side) + _TEXT_TOKENS
    at_once = max(1, min(shape.images, _TOKEN_BUDGET // tokens))
    rounds = math.ceil(shape.images / at_once)
    step_s = model.denoise_s(Work.of([tokens] * at_once)) or 0.0
    return _ENCODE_S + rounds * shape.steps * step_s + (model.decode_s(shape.side**2) or 0.0)


def busy_s(shape: Shape, tp: int) -> float:
    """Seconds of a replica that a request takes up, without its decoding, which goes on beside the next one's steps."""
    return alone_s(shape, tp) - (costs(tp).decode_s(shape.side**2) or 0.0)


def mean_busy_s(tp: int) -> float:
    """Seconds of a replica that a request takes up, on average over the mix."""
    return sum(busy_s(shape, tp) * shape.share for shape in SHAPES)


def _image_tokens(side: int) -> int:
    return (side // 16) ** 2


@dataclass
class _Request:
    jobs_left: int
    done: Callable[[], None]


class Replica:
    """Makes requests with the engine's scheduler, two steps ahead, as a front-end does.

    busy_s: for how long its ranks had a step to do. `die` forgets all that it has.
    """

    def __init__(self, name: str, calendar: Calendar, random: Random, *, tp: int, queue: int) -> None:
        self.name, self.busy_s, self.alive = name, 0.0, True
        self._calendar, self._random, self._costs, self._most = calendar, random, costs(tp), queue
        self._start()

    def _start(self) -> None:
        self._scheduler = Scheduler(_TOKEN_BUDGET, costs=self._costs)
        self._requests: dict[int, _Request] = {}
        self._of_job: dict[int, int] = {}
        self._works: dict[int, Work] = {}
        self._pixels: dict[int, int] = {}
        self._numbers = 0
        self._outstanding = self._decoding = 0
        self._ranks_free = self._decoder_free = 0.0
        self._life = object()  # what was to happen in a former one does not

    @property
    def ongoing(self) -> int:
        """Requests that it has."""
        return len(self._requests)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return sum(
            (estimate := self._scheduler.estimate(number, self._calendar.now)) is not None and estimate.position > 0
            for number in self._requests
        )

    @property
    def backlog_s(self) -> float:
        """As the engine says it: in how many seconds all that it has is done."""
        return self._scheduler.backlog_s(self._calendar.now) or 0.0

    def add(self, number: int, shape: Shape, done: Callable[[], None]) -> float | None:
        """Take a request, and say in how many seconds it will be done; None where the queue is full."""
        if len(self._of_job) + shape.images > self._most:
            return None
        now = self._calendar.now
        self._requests[number] = _Request(shape.images, done)
        tokens = _image_tokens(shape.side) + _TEXT_TOKENS
        for _ in range(shape.images):
            job = _job(self._numbers, number, shape)
            self._numbers += 1
            self._of_job[job.job_id], self._works[job.job_id] = number, Work.of([tokens])
            self._pixels[job.job_id] = shape.side**2
            self._scheduler.add(job, segments=(tokens,), request=number, now=now)
        estimate = self._scheduler.estimate(number, now)
        self._pump()
        return 0.0 if estimate is None else estimate.seconds

    def take_back(self, number: int) -> bool:
        """Forget a request that waits. Returns whether that is so: one that has begun stays."""
        estimate = self._scheduler.estimate(number, self._calendar.now)
        if estimate is None or not estimate.position:
            return False
        del self._requests[number]
        for job_id in [job_id for job_id, of in self._of_job.items() if of == number]:
            self._scheduler.cancel(job_id)
            del self._of_job[job_id], self._works[job_id], self._pixels[job_id]
        return True

    def die(self) -> None:
        """Lose everything, and take nothing until `revive`."""
        self.alive = False
        self._start()

    def revive(self) -> None:
        """Run again, with nothing to do."""
        self.alive = True

    def _pump(self) -> None:
        now = self._calendar.now
        while self._outstanding < _STEPS_AHEAD:
            step = self._scheduler.next_step(now, idle=not (self._outstanding or self._decoding))
            if step is None:
                return
            seconds = self._seconds(step)
            self.busy_s += seconds
            self._ranks_free = max(now, self._ranks_free) + seconds
            self._outstanding += 1
            self._at(self._ranks_free, self._stepped)
            for job_id in step.decode:
                decode_s = self._costs.decode_s(self._pixels.pop(job_id)) or 0.0
                self._decoder_free = max(self._decoder_free, self._ranks_free) + decode_s
                self._decoding += 1
                self._at(self._decoder_free, partial(self._decoded, job_id))

    def _seconds(self, step: Step) -> float:
        prompts = {ids for job in step.start for ids in job.prompts}
        seconds = self._costs.encode_s(sum(map(len, prompts))) or 0.0 if prompts else 0.0
        if step.denoise:
            seconds += self._costs.denoise_s(sum((self._works[job_id] for job_id in step.denoise), Work(0, 0))) or 0.0
        return seconds * max(0.5, self._random.gauss(1.0, _NOISE))

    def _at(self, time: float, happening: Callable[[], None]) -> None:
        life = self._life
        self._calendar.after(time - self._calendar.now, lambda: happening() if life is self._life else None)

    def _stepped(self) -> None:
        self._outstanding -= 1
        self._pump()

    def _decoded(self, job_id: int) -> None:
        self._decoding -= 1
        self._scheduler.decoded(job_id, self._calendar.now)
        del self._works[job_id]
        number = self._of_job.pop(job_id)
        request = self._requests[number]
        request.jobs_left -= 1
        if not request.jobs_left:
            del self._requests[number]
            request.done()
        self._pump()


def _job(job_id: int, number: int, shape: Shape) -> Job:
    return Job(
        job_id=job_id,
        prompt_ids=(number, *range(_PROMPT_TOKENS - 1)),
        negative_ids=None,
        width=shape.side,
        height=shape.side,
        steps=shape.steps,
        guidance=0.0,
        mu=None,
        seed=job_id,
    )
