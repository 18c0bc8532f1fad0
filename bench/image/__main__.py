"""One image from prompt ids to its file, at the real size with random weights, stage by stage, and diffusers' pipeline.

    python -m bench.image [--sides 1024,512,2048] [--quantization none,fp8] [--peer diffusers] [--seconds N]
                          [--unseen-length [PAIRS]]

A rank is driven as the front-end drives it. Stages have timers of their own: text encoding and denoising by the device,
decoding from the last step's end to the pixels' arrival in host memory, and the JPEG file; what the wall clock says
beyond their sum is "outside". A PNG of the same picture is timed beside it. Files are encoded as the server does, but
here the request waits for them; pictures of random weights are noise, which PNG compresses worse than photographs.

Burst: each image after some idle seconds, when a GPU is cool; the median counts. Sustained: back to back; the mean
counts. A peer takes turns with the images of the first kind, A B C C B A.

All of these have prompts of one length. --unseen-length makes more images then, in pairs: one whose prompt has a length
that no image had before, for which an attention may have no plan yet, so that another serves it, and one as long as
that, A B B A. What their medians differ by is what a new length costs; the plan is built between them, as a server does
while it has nothing to do, and timed by itself.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from bench.engines.engine import STEPS_AHEAD, Engine
from bench.engines.real_size import random_prompt
from bench.engines.results import Results
from bench.engines.runner import load_peer, measure_all, run_main
from bench.engines.setup import Setup, add_options, read_options
from bench.image.unseen_length import UnseenLength, measure_unseen
from bench.measure.arguments import check_positive, duration, end_with, parse_sides
from bench.measure.files import encode_file
from bench.measure.floor import Ceilings, step_floor
from bench.measure.timing import Spread, gpu_state, measure_ceilings, peak_memory, reset_peak_memory
from engine.rank.step_handle import PendingStep
from engine.step import StepTimes

if TYPE_CHECKING:
    from bench.engines.peer import Peer

SIDES = {"real": "1024,512,2048"}
SMALL_SIDES = "64,128"
STEPS = 8
UNSEEN_PAIRS = 4
ENGINE = "engine"
# Seconds from prompt to JPEG file that the project is after on one H200, by side and quantization, at 8 steps.
TARGETS_S = {(1024, "none"): 1.30, (1024, "fp8"): 0.95, (2048, "none"): 6.9, (2048, "fp8"): 5.4}


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


@dataclass(frozen=True)
class PeerResult:
    """Seconds of the peer's images, and how many times the engine's they are."""

    wall_s: Spread
    encode_s: float
    denoise_s: float
    decode_s: float
    ratio: float


@dataclass(frozen=True)
class ImageResult:
    """See the module. `wall_s` is of the burst; the stages are means of its images. The peak of memory includes the
    weights of a peer, if there is one."""

    side: int
    steps: int
    quantization: str
    attention: str
    cuda_graphs: bool  # whether steps that are small enough may be graphs; never on a CPU
    idle_s: float
    wall_s: Spread
    stages: Stages
    outside_s: float
    sustained_s: float | None  # mean wall clock of an image, back to back
    sustained_images: int
    unseen_length: UnseenLength | None
    target_s: float | None
    denoise_floor_s: float
    denoise_of_floor: float
    file_bytes: dict[str, int]
    peers: dict[str, PeerResult]
    peak_memory_bytes: int
    ceilings: Ceilings
    gpu_before: dict[str, float | str] | None
    gpu_after: dict[str, float | str] | None


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.image", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sides", help="of the square images, comma-separated, most important first")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"({STEPS})")
    parser.add_argument("--burst", type=int, default=3, help="images of the burst (3)")
    parser.add_argument("--idle", type=duration, default=5.0, help="seconds before each of them (5)")
    parser.add_argument("--sustained", type=duration, default=10.0, help="seconds of images back to back; 0: none (10)")
    parser.add_argument(
        "--unseen-length", type=int, nargs="?", const=UNSEEN_PAIRS, default=0, metavar="PAIRS",
        help=f"measure so many pairs of a new prompt length and a known one too ({UNSEEN_PAIRS})",
    )  # fmt: skip
    add_options(parser, quantization="none")
    return run_main(_run, parser, sys.argv[1:] if words is None else words)


def _run(arguments: argparse.Namespace) -> Results:
    setup = read_options(arguments)
    check_positive("steps", arguments.steps)
    check_positive("burst", arguments.burst)
    if arguments.unseen_length:
        check_positive("unseen-length", arguments.unseen_length)
    sides = parse_sides("sides", arguments.sides or SIDES.get(arguments.size, SMALL_SIDES), setup.model.size_multiple)
    columns = ("image", "weights in", "wall", "encode", "denoise", "of floor", "decode", "JPEG", "outside", "PNG")
    more = ("sustained", "unseen length", "target", "eager", "ratio", "compiled", "ratio")
    results = Results("image", setup, (*columns, *more))
    ceilings = measure_ceilings(setup.model.transformer, setup.device, setup.dtype)
    peer = load_peer(setup)

    def measure(engine: Engine, side: int) -> tuple[ImageResult, Sequence[str]]:
        result = measure_image(
            engine,
            side,
            ceilings,
            steps=arguments.steps,
            burst=arguments.burst,
            idle_s=arguments.idle,
            sustained_s=arguments.sustained,
            unseen_pairs=arguments.unseen_length,
            peer=peer,
        )
        return result, _row(result)

    measure_all(setup, sides, measure, results)
    return results


def measure_image(
    engine: Engine,
    side: int,
    ceilings: Ceilings,
    *,
    steps: int = STEPS,
    burst: int = 3,
    idle_s: float = 5.0,
    sustained_s: float = 10.0,
    unseen_pairs: int = 0,
    peer: Peer | None = None,
) -> ImageResult:
    """Time images of one size, with the peer's if there is one. Each has a prompt and a seed of its own, all prompts
    one length but in `unseen_pairs`."""
    setup, device = engine.setup, engine.setup.device
    sizes: dict[str, int] = {}

    def make() -> Stages:
        return make_image(engine, side, steps, sizes)

    makers = {ENGINE: make}
    if peer is not None:
        makers |= {mode: _peer_maker(peer, setup, side, steps, mode) for mode in peer.modes}
    before = gpu_state(device)
    reset_peak_memory(device)
    for _ in range(2):  # the first also compiles, and makes what is kept for a size
        make()
    peak = peak_memory(device)
    for name in makers.keys() - {ENGINE}:
        makers[name]()
    runs: dict[str, list[Stages]] = {name: [] for name in makers}
    for index in range(burst):
        if index and setup.budget.spent:
            break
        for name in list(makers)[:: -1 if index % 2 else 1]:  # A B C C B A
            _rest(idle_s)
            runs[name].append(makers[name]())
    images = runs.pop(ENGINE)
    sustained = _back_to_back(make, min(sustained_s, setup.budget.left)) if sustained_s > 0 else []
    unseen = measure_unseen(
        engine, lambda tokens: make_image(engine, side, steps, prompt_tokens=tokens).wall_s, unseen_pairs
    )

    wall = Spread.of([image.wall_s for image in images])
    stages = Stages.mean(images)
    floor = step_floor(
        setup.model.transformer,
        [setup.segment_tokens(side)],
        ceilings,
        fp8=engine.version.quantization == "fp8",
        bytes_per_element=setup.bytes_per_element,
        steps=steps,
    )
    return ImageResult(
        side=side,
        steps=steps,
        quantization=engine.version.quantization,
        attention=engine.rank.attention.backend,
        cuda_graphs=engine.rank.has_step_graphs,
        idle_s=idle_s,
        wall_s=wall,
        stages=stages,
        outside_s=stages.outside_s,
        sustained_s=fmean(image.wall_s for image in sustained) if sustained else None,
        sustained_images=len(sustained),
        unseen_length=unseen,
        target_s=_target(setup, side, steps, engine.version.quantization),
        denoise_floor_s=floor.seconds,
        denoise_of_floor=floor.seconds / stages.denoise_s,
        file_bytes=sizes,
        peers={name: _peer_result(others, wall.median) for name, others in runs.items()},
        peak_memory_bytes=peak,
        ceilings=ceilings,
        gpu_before=before,
        gpu_after=gpu_state(device),
    )


def make_image(
    engine: Engine, side: int, steps: int, sizes: dict[str, int] | None = None, prompt_tokens: int | None = None
) -> Stages:
    """One image, alone in the engine. `sizes` gets the bytes of its files by format. prompt_tokens: the setup's."""
    began = time.perf_counter()
    (job,) = engine.new_jobs(1, side, steps, prompt_tokens)
    under_way: deque[PendingStep] = deque()
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
    times += [pending.wait() for pending in under_way]
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


def _peer_maker(peer: Peer, setup: Setup, side: int, steps: int, mode: str) -> Callable[[], Stages]:
    seeds = itertools.count()

    def make() -> Stages:
        seed = next(seeds)
        prompt = random_prompt(setup.model, seed, setup.prompt_tokens)
        began = time.perf_counter()
        (image,) = peer.make_images([prompt], side, steps, [seed], mode)
        received = time.perf_counter()
        file = encode_file(image.picture.tobytes(), side, "jpeg")
        ended = time.perf_counter()
        file_s = None if file is None else ended - received
        return Stages(ended - began, image.encode_s, image.denoise_s, image.decode_s, file_s, None)

    return make


def _back_to_back(make: Callable[[], Stages], seconds: float) -> list[Stages]:
    images = [make()]
    due = time.monotonic() + seconds - images[0].wall_s
    while time.monotonic() < due:
        images.append(make())
    return images


def _mean(values: Sequence[float | None]) -> float | None:
    """None if one is."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _rest(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


def _target(setup: Setup, side: int, steps: int, quantization: str) -> float | None:
    if setup.size != "real" or setup.device.type != "cuda" or steps != STEPS:
        return None
    return TARGETS_S.get((side, quantization))


def _peer_result(runs: Sequence[Stages], ours_s: float) -> PeerResult:
    wall, stages = Spread.of([run.wall_s for run in runs]), Stages.mean(runs)
    return PeerResult(wall, stages.encode_s, stages.denoise_s, stages.decode_s, wall.median / ours_s)


def _row(result: ImageResult) -> list[str]:
    stages = result.stages
    row = [f"{result.side}²", result.quantization, _seconds(result.wall_s.median), _seconds(stages.encode_s)]
    row += [_seconds(stages.denoise_s), f"{result.denoise_of_floor:.0%}", _seconds(stages.decode_s)]
    row += [_seconds(value) for value in (stages.file_s, result.outside_s, stages.png_s, result.sustained_s)]
    row.append("" if result.unseen_length is None else f"{result.unseen_length.difference_s:+.3f} s")
    row.append("" if result.target_s is None else f"≤ {result.target_s:.2f} s")
    for mode in ("eager", "compiled"):
        peer = result.peers.get(mode)
        row += ["", ""] if peer is None else [_seconds(peer.wall_s.median), f"{peer.ratio:.2f}×"]
    return row


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} s"


if __name__ == "__main__":
    end_with(main)
