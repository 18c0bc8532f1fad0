"""Runs a load through the scheduler and a rank, as the front-end drives them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from bench.engines.cases import Case
from bench.engines.engine import DEADLINE_S, STEPS_AHEAD, Engine
from bench.measure.files import encode_file
from engine.rank.image_decoder import DecodedImage
from engine.rank.step_handle import StepHandle
from engine.scheduling.cost import CostModel, Work
from engine.scheduling.scheduler import Scheduler
from engine.step import Step, StepTimes

MAX_DECODING = 32  # as the front-end's


def run_load(engine: Engine, load: Case, steps: int, token_budget: int) -> list[float]:
    """Seconds until each image's file is there, from when all of them arrive."""
    costs = CostModel()
    scheduler = Scheduler(token_budget, costs=costs, max_decoding=MAX_DECODING)
    work = Work.of([engine.setup.segment_tokens(load.side)])
    jobs = engine.new_jobs(load.images, load.side, steps)
    sent: dict[int, Step] = {}  # by the scheduler's numbers
    decoding = 0
    files: list[Future[float]] = []
    events: queue.Queue[_StepDone | DecodedImage] = queue.Queue()

    def write_file(image: DecodedImage) -> float:
        encode_file(image.rgb, image.width, "jpeg")
        return time.perf_counter() - began

    with engine.images_to(events.put), _replies(events) as wait_for, ThreadPoolExecutor() as pool:
        began = time.perf_counter()
        for job in jobs:
            scheduler.add(job, segments=(work.tokens,), request=job.job_id, now=began)
        while len(files) < load.images:
            while len(sent) < STEPS_AHEAD:
                step = scheduler.next_step(time.perf_counter(), idle=not (sent or decoding))
                if step is None:
                    break
                decoding += len(step.decode)
                sent[step.number] = step
                handle = engine.execute(
                    start=step.start, denoise=step.denoise, decode=step.decode, release=step.release
                )
                wait_for(step.number, handle)
            event = engine.wait_for(events)
            if isinstance(event, DecodedImage):
                decoding -= 1
                scheduler.decoded(event.job_id, time.perf_counter())
                files.append(pool.submit(write_file, event))
                continue
            step, times = sent.pop(event.number), event.times
            if isinstance(times, BaseException):
                raise times
            if times.encoded_tokens:
                costs.correct_encode(times.encoded_tokens, times.encode_s)
            if step.denoise:
                costs.correct(sum((work for _ in step.denoise), Work(0, 0)), times.denoise_s)
        return [file.result(timeout=DEADLINE_S) for file in files]


@dataclass(frozen=True)
class _StepDone:
    number: int
    times: StepTimes | BaseException


@contextmanager
def _replies(events: queue.Queue[_StepDone | DecodedImage]) -> Iterator[Callable[[int, StepHandle], None]]:
    """A thread that waits for steps in turn, as in a rank's process. Gives what takes a step under way."""
    started: queue.SimpleQueue[tuple[int, StepHandle] | None] = queue.SimpleQueue()

    def reply() -> None:
        while (step := started.get()) is not None:
            number, handle = step
            try:
                times: StepTimes | BaseException = handle.wait()
            except BaseException as error:  # raised where the load is run
                times = error
            events.put(_StepDone(number, times))

    thread = threading.Thread(target=reply, name="replies")
    thread.start()
    try:
        yield lambda number, handle: started.put((number, handle))
    finally:
        started.put(None)
        thread.join(DEADLINE_S)
