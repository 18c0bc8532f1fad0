"""Many requests at once through the scheduler and a rank, at the real size with random weights, against the floor.

    python -m bench.throughput [--loads 20x1024,16x512] [--quantization none,fp8] [--peer diffusers] [--seconds N]

A load is COUNTxSIDE: so many images, each a request of its own with its own prompt, that all arrive in the same moment.
Scheduler and rank are driven as the front-end drives them: one step ahead, at most eight images with the decoder, JPEG
files in threads. The floor is the denoising of all images at the rates that this run measured first (see
`bench.measure.floor`), and nothing else. A peer takes its images in batches of about as many tokens as a step of the
engine.
"""

from __future__ import annotations

import argparse
import itertools
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from bench.engines.engine import DEADLINE_S, STEPS_AHEAD, Engine
from bench.engines.real_size import random_prompt
from bench.engines.results import Results
from bench.engines.runner import load_peer, measure_all, run_main
from bench.engines.setup import Setup, add_options, read_options
from bench.measure.arguments import check_positive, end_with
from bench.measure.files import encode_file
from bench.measure.floor import Ceilings, step_floor
from bench.measure.timing import gpu_state, measure_ceilings, peak_memory, percentile, reset_peak_memory
from bench.step.__main__ import Case, parse_cases
from engine.rank.image_decoder import DecodedImage
from engine.rank.step_handle import PendingStep
from engine.scheduling.cost import CostModel, Work
from engine.scheduling.scheduler import Scheduler
from engine.step import Step, StepTimes

if TYPE_CHECKING:
    from bench.engines.peer import Peer

LOADS = {"real": "20x1024,16x512"}
SMALL_LOADS = "4x64,4x128"
STEPS = 8
TOKEN_BUDGET = 8192  # of a step, as the front-end's before its warm-up has measured a smaller one
MAX_DECODING = 8  # as the front-end's
_PEER_IMAGES = 6  # that a peer makes at least of a load's: one after the other each is as fast as the next


@dataclass(frozen=True)
class Target:
    """What the project is after on one H200. None: nothing in this respect."""

    images_per_s: float | None = None
    mean_s: float | None = None
    of_floor: float | None = None


TARGETS = {
    (20, 1024, "none"): Target(images_per_s=0.78, mean_s=13.5),
    (20, 1024, "fp8"): Target(images_per_s=1.08, mean_s=13.5),
    (16, 512, "none"): Target(of_floor=0.8),
    (16, 512, "fp8"): Target(of_floor=0.8),
}


@dataclass(frozen=True)
class PeerResult:
    """`images_per_s` over `images` of the load's; `ratio`: how many times as many the engine makes."""

    images: int
    batch: int
    images_per_s: float
    ratio: float


@dataclass(frozen=True)
class ThroughputResult:
    """See the module. Latencies are from the arrival of all to each image's file. The peak of memory includes the
    weights of a peer, if there is one."""

    load: str
    images: int
    side: int
    steps: int
    quantization: str
    attention: str
    cuda_graphs: bool
    token_budget: int
    wall_s: float
    images_per_s: float
    latency_mean_s: float
    latency_p95_s: float
    floor_s: float
    of_floor: float
    target: Target | None
    peers: dict[str, PeerResult]
    peak_memory_bytes: int
    ceilings: Ceilings
    gpu_before: dict[str, float | str] | None
    gpu_after: dict[str, float | str] | None


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--loads", help="comma-separated COUNTxSIDE, most important first")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"({STEPS})")
    parser.add_argument(
        "--token-budget", type=int, default=TOKEN_BUDGET, help=f"packed tokens of a step ({TOKEN_BUDGET})"
    )
    add_options(parser, quantization="none,fp8")
    return run_main(_run, parser, sys.argv[1:] if words is None else words)


def _run(arguments: argparse.Namespace) -> Results:
    setup = read_options(arguments)
    check_positive("steps", arguments.steps)
    check_positive("token-budget", arguments.token_budget)
    loads = parse_cases("loads", arguments.loads or LOADS.get(arguments.size, SMALL_LOADS), setup.model.size_multiple)
    columns = ("at once", "weights in", "images/s", "target", "mean", "p95", "floor", "of floor")
    results = Results("throughput", setup, (*columns, "eager images/s", "ratio", "compiled images/s", "ratio"))
    ceilings = measure_ceilings(setup.model.transformer, setup.device, setup.dtype)
    peer = load_peer(setup)

    def measure(engine: Engine, load: Case) -> tuple[ThroughputResult, Sequence[str]]:
        result = measure_load(engine, load, ceilings, arguments.steps, arguments.token_budget, peer)
        return result, _row(result)

    measure_all(setup, loads, measure, results)
    return results


def measure_load(
    engine: Engine,
    load: Case,
    ceilings: Ceilings,
    steps: int = STEPS,
    token_budget: int = TOKEN_BUDGET,
    peer: Peer | None = None,
) -> ThroughputResult:
    """Time one load, after a small one of the same images that does not count."""
    setup, version, device = engine.setup, engine.version, engine.setup.device
    before = gpu_state(device)
    reset_peak_memory(device)
    tokens = setup.segment_tokens(load.side)
    batch = max(1, min(load.images, token_budget // tokens))
    run_load(engine, Case(batch, load.side), 2, token_budget)  # compiles, and makes what is kept for these shapes
    latencies = run_load(engine, load, steps, token_budget)
    peak = peak_memory(device)
    wall = max(latencies)
    floor = step_floor(
        setup.model.transformer,
        [tokens] * load.images,
        ceilings,
        fp8=version.quantization == "fp8",
        bytes_per_element=setup.bytes_per_element,
        steps=steps,
    )
    has_target = setup.size == "real" and device.type == "cuda" and steps == STEPS
    return ThroughputResult(
        load=str(load),
        images=load.images,
        side=load.side,
        steps=steps,
        quantization=version.quantization,
        attention=engine.rank.attention.backend,
        cuda_graphs=engine.rank.has_step_graphs,
        token_budget=token_budget,
        wall_s=wall,
        images_per_s=load.images / wall,
        latency_mean_s=fmean(latencies),
        latency_p95_s=percentile(latencies, 95),
        floor_s=floor.seconds,
        of_floor=floor.seconds / wall,
        target=TARGETS.get((load.images, load.side, version.quantization)) if has_target else None,
        peers={} if peer is None else _measure_peer(peer, setup, load, steps, token_budget, load.images / wall),
        peak_memory_bytes=peak,
        ceilings=ceilings,
        gpu_before=before,
        gpu_after=gpu_state(device),
    )


def run_load(engine: Engine, load: Case, steps: int, token_budget: int) -> list[float]:
    """Seconds until each image's file is there, from the moment at which all of them arrive."""
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

    with engine.images_to(events.put), _answers(events) as wait_for, ThreadPoolExecutor() as pool:
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
                pending = engine.execute(
                    start=step.start, denoise=step.denoise, decode=step.decode, release=step.release
                )
                wait_for(step.number, pending)
            event = engine.wait_for(events)
            if isinstance(event, DecodedImage):
                decoding -= 1
                scheduler.decoded(event.job_id)
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
def _answers(events: queue.Queue[_StepDone | DecodedImage]) -> Iterator[Callable[[int, PendingStep], None]]:
    """A thread that waits for steps in turn, as in a rank's process. Gives what takes a step under way."""
    started: queue.SimpleQueue[tuple[int, PendingStep] | None] = queue.SimpleQueue()

    def answer() -> None:
        while (step := started.get()) is not None:
            number, pending = step
            try:
                times: StepTimes | BaseException = pending.wait()
            except BaseException as error:  # raised where the load is run
                times = error
            events.put(_StepDone(number, times))

    thread = threading.Thread(target=answer, name="answers")
    thread.start()
    try:
        yield lambda number, pending: started.put((number, pending))
    finally:
        started.put(None)
        thread.join(DEADLINE_S)


def _measure_peer(
    peer: Peer, setup: Setup, load: Case, steps: int, token_budget: int, ours_per_s: float
) -> dict[str, PeerResult]:
    from bench.engines.peer import TEXT_TOKENS

    tokens = TEXT_TOKENS + setup.model.image_tokens(load.side, load.side)
    batch = max(1, min(load.images, token_budget // tokens))
    seeds = itertools.count()

    def make(mode: str) -> None:
        numbers = list(itertools.islice(seeds, batch))
        prompts = [random_prompt(setup.model, number, setup.prompt_tokens) for number in numbers]
        for image in peer.make_images(prompts, load.side, steps, numbers, mode):
            encode_file(image.picture.tobytes(), load.side, "jpeg")

    results = {}
    for mode in peer.modes:
        make(mode)
        batches = math.ceil(min(load.images, _PEER_IMAGES) / batch)
        began = time.perf_counter()
        for _ in range(batches):
            make(mode)
        rate = batches * batch / (time.perf_counter() - began)
        results[mode] = PeerResult(batches * batch, batch, rate, ours_per_s / rate)
    return results


def _row(result: ThroughputResult) -> list[str]:
    target = result.target or Target()
    row = [result.load, result.quantization, f"{result.images_per_s:.3f}"]
    row.append("" if target.images_per_s is None else f"≥ {target.images_per_s:.2f}")
    row.append(f"{result.latency_mean_s:.2f} s" + ("" if target.mean_s is None else f" (≤ {target.mean_s:.1f})"))
    row += [f"{result.latency_p95_s:.2f} s", f"{result.floor_s:.2f} s"]
    row.append(f"{result.of_floor:.0%}" + ("" if target.of_floor is None else f" (≥ {target.of_floor:.0%})"))
    for mode in ("eager", "compiled"):
        peer = result.peers.get(mode)
        row += ["", ""] if peer is None else [f"{peer.images_per_s:.3f}", f"{peer.ratio:.2f}×"]
    return row


if __name__ == "__main__":
    end_with(main)
