"""Measures images of one size: a burst, back to back, of a new prompt length, and the peer's."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from bench.engines.engine import Engine
from bench.engines.setup import Setup
from bench.engines.stages import Stages, make_image, peer_maker
from bench.image.unseen_length import UnseenLength, measure_unseen
from bench.measure.timing import Spread, gpu_state, peak_memory, reset_peak_memory
from engine.planning.floor import Ceilings

if TYPE_CHECKING:
    from bench.engines.peer import Peer

STEPS = 8
ENGINE = "engine"
# Seconds from prompt to JPEG file that the project is after on one H200, by side and quantization, at 8 steps.
TARGETS_S = {(1024, "none"): 1.30, (1024, "fp8"): 0.95, (2048, "none"): 6.9, (2048, "fp8"): 5.4}


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
    """See bench/image/__main__.py. `wall_s` is of the burst; the stages are means of its images. The peak of memory
    includes the weights of a peer, if there is one. One field for each value of the JSON line."""

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
        makers |= {mode: peer_maker(peer, setup, side, steps, mode, itertools.count()) for mode in peer.modes}
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
            time.sleep(idle_s)
            runs[name].append(makers[name]())
    images = runs.pop(ENGINE)
    sustained = _back_to_back(make, min(sustained_s, setup.budget.left)) if sustained_s > 0 else []
    unseen = measure_unseen(
        engine, lambda tokens: make_image(engine, side, steps, prompt_tokens=tokens).wall_s, unseen_pairs
    )

    wall = Spread.of([image.wall_s for image in images])
    stages = Stages.mean(images)
    floor = engine.floor([setup.segment_tokens(side)], ceilings, steps)
    return ImageResult(
        side=side,
        steps=steps,
        quantization=engine.version.quantization,
        attention=engine.rank.model.attention.backend,
        cuda_graphs=engine.rank.denoiser.graphs is not None,
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


def _back_to_back(make: Callable[[], Stages], seconds: float) -> list[Stages]:
    images = [make()]
    due = time.monotonic() + seconds - images[0].wall_s
    while time.monotonic() < due:
        images.append(make())
    return images


def _target(setup: Setup, side: int, steps: int, quantization: str) -> float | None:
    if setup.size != "real" or setup.device.type != "cuda" or steps != STEPS:
        return None
    return TARGETS_S.get((side, quantization))


def _peer_result(runs: Sequence[Stages], ours_s: float) -> PeerResult:
    wall, stages = Spread.of([run.wall_s for run in runs]), Stages.mean(runs)
    return PeerResult(wall, stages.encode_s, stages.denoise_s, stages.decode_s, wall.median / ours_s)
