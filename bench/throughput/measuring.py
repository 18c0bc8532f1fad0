"""Measures a load against the floor and against diffusers' pipeline."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from bench.engines.cases import Case
from bench.engines.engine import Engine
from bench.engines.setup import Setup
from bench.engines.stages import peer_maker
from bench.measure.timing import gpu_state, peak_memory, percentile, reset_peak_memory
from bench.throughput.run import run_load
from engine.planning.floor import Ceilings

if TYPE_CHECKING:
    from bench.engines.peer import Peer

STEPS = 8
TOKEN_BUDGET = 8192  # of a step, as the front-end's before its warm-up has measured a smaller one
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
    """See bench/throughput/__main__.py. Latencies are from the arrival of all to each image's file. The peak of memory
    includes the weights of a peer, if there is one. One field for each value of the JSON line."""

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
    floor = engine.floor([tokens] * load.images, ceilings, steps)
    has_target = setup.size == "real" and device.type == "cuda" and steps == STEPS
    return ThroughputResult(
        load=str(load),
        images=load.images,
        side=load.side,
        steps=steps,
        quantization=version.quantization,
        attention=engine.rank.model.attention.backend,
        cuda_graphs=engine.rank.denoiser.graphs is not None,
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


def _measure_peer(
    peer: Peer, setup: Setup, load: Case, steps: int, token_budget: int, ours_per_s: float
) -> dict[str, PeerResult]:
    from bench.engines.peer import TEXT_TOKENS

    tokens = TEXT_TOKENS + setup.model.image_tokens(load.side, load.side)
    batch = max(1, min(load.images, token_budget // tokens))
    seeds = itertools.count()
    results = {}
    for mode in peer.modes:
        make = peer_maker(peer, setup, load.side, steps, mode, seeds, batch)
        make()
        batches = math.ceil(min(load.images, _PEER_IMAGES) / batch)
        began = time.perf_counter()
        for _ in range(batches):
            make()
        rate = batches * batch / (time.perf_counter() - began)
        results[mode] = PeerResult(batches * batch, batch, rate, ours_per_s / rate)
    return results
