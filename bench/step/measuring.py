"""Measures one case: steps of the engine against their floor, and those of a peer in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.engines.cases import Case
from bench.engines.engine import Engine
from bench.measure.timing import WARM_UP, Spread, gpu_state, peak_memory, reset_peak_memory, time_calls
from engine.planning.floor import Ceilings

if TYPE_CHECKING:
    from bench.engines.peer import Peer

ENGINE = "engine"
_LEAST_PER_TURN, _MOST_PER_TURN = 3, 10
_TURN_S = 2.0  # for one side's turn, within these numbers of steps


@dataclass(frozen=True)
class Timing:
    """Of one side's steps. noise: how far the medians of its two turns are apart, as a share of the median of both."""

    step_s: Spread
    noise: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Timing:
        both = Spread.of([*first, *second])
        return cls(both, abs(Spread.of(first).median - Spread.of(second).median) / both.median)


@dataclass(frozen=True)
class StepResult:
    """See bench/step/__main__.py. `ratio`: how many times as long as the engine each peer takes. The peak of
    memory includes the weights of a peer, if there is one. One field for each value of the JSON line."""

    case: str
    images: int
    side: int
    tokens: int
    quantization: str
    attention: str  # the backend that ran
    cuda_graphs: bool  # whether steps that are small enough may be graphs; never on a CPU
    engine: Timing
    floor_s: float
    floor_bound: str  # "flops" or "bytes"
    floor_attention_at: str  # which ceiling attention was reckoned at
    of_floor: float
    flops_per_s: float
    peers: dict[str, Timing]
    ratio: dict[str, float]
    peak_memory_bytes: int
    ceilings: Ceilings
    gpu_before: dict[str, float | str] | None
    gpu_after: dict[str, float | str] | None


def measure_case(engine: Engine, case: Case, ceilings: Ceilings, peer: Peer | None = None) -> StepResult:
    """Time one case, with the peer if there is one."""
    setup, version = engine.setup, engine.version
    device = setup.device
    segments = [setup.segment_tokens(case.side)] * case.images

    def engine_steps(count: int) -> list[float]:
        # one more for the call that `time_calls` does not count; new prompts and seeds in every turn
        jobs = engine.new_jobs(case.images, case.side, count + 1)
        ids = [job.job_id for job in jobs]
        engine.execute(start=jobs).wait()
        times = time_calls(lambda: engine.execute(denoise=ids), count, device)
        engine.execute(release=ids).wait()
        return times

    sides: dict[str, Callable[[int], list[float]]] = {ENGINE: engine_steps}
    if peer is not None:
        sides |= peer.step_timers(case.images, case.side, setup.text_tokens())
    before = gpu_state(device)
    reset_peak_memory(device)
    engine_steps(WARM_UP)
    peak = peak_memory(device)
    timings = take_turns(sides)
    floor = engine.floor(segments, ceilings)
    ours, peers = timings.pop(ENGINE), timings
    return StepResult(
        case=str(case),
        images=case.images,
        side=case.side,
        tokens=sum(segments),
        quantization=version.quantization,
        attention=engine.rank.model.attention.backend,
        cuda_graphs=engine.rank.denoiser.graphs is not None,
        engine=ours,
        floor_s=floor.seconds,
        floor_bound=floor.bound,
        floor_attention_at=ceilings.attention_source,
        of_floor=floor.seconds / ours.step_s.median,
        flops_per_s=floor.flops / ours.step_s.median,
        peers=peers,
        ratio={name: timing.step_s.median / ours.step_s.median for name, timing in peers.items()},
        peak_memory_bytes=peak,
        ceilings=ceilings,
        gpu_before=before,
        gpu_after=gpu_state(device),
    )


def take_turns(sides: dict[str, Callable[[int], list[float]]]) -> dict[str, Timing]:
    """Each side gets two turns, A B C C B A, once it has been warmed up. A side takes a number of calls and gives as
    many times; the faster it is, the more calls it gets."""
    counts = {}
    for name, side in sides.items():
        slowest = max(side(WARM_UP)[1:])
        counts[name] = max(_LEAST_PER_TURN, min(_MOST_PER_TURN, int(_TURN_S / slowest)))
    first = {name: side(counts[name]) for name, side in sides.items()}
    second = {name: side(counts[name]) for name, side in reversed(sides.items())}
    return {name: Timing.of(first[name], second[name]) for name in sides}
