"""One denoise step through the engine, at the real size with random weights, against its floor and diffusers.

    python -m bench.step [--cases 1024,512,16x512] [--quantization none,fp8] [--peer diffusers] [--seconds N]
                         [--profile FOLDER]

A case is the side of a square image, or IMAGESxSIDE for several packed into one step. The floor of a step is its
arithmetic at the rates that this run measured first (a large matrix product in bfloat16 or fp8, the best attention),
or the reading of its weights at the rate of a copy, whichever takes longer: see `bench.measure.floor`. Steps and those
of the peer take turns, A B C C B A; between the two turns of one side lies the noise, below which no difference counts.

--profile traces a few steps of each version's first case once that has been measured: the kernels that take longest
go to stderr, the trace (for ui.perfetto.dev) to a file in the folder.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.engines.engine import Engine
from bench.engines.results import Results
from bench.engines.runner import load_peer, measure_all, run_main
from bench.engines.setup import add_options, read_options
from bench.measure.arguments import end_with
from bench.measure.floor import Ceilings, step_floor
from bench.measure.lost import raise_if_lost
from bench.measure.output import note
from bench.measure.timing import (
    WARM_UP,
    Spread,
    gpu_state,
    measure_ceilings,
    peak_memory,
    reset_peak_memory,
    time_calls,
)
from bench.step.profile import profile_steps
from engine.errors import ArgumentError

if TYPE_CHECKING:
    from bench.engines.peer import Peer

CASES = {"real": "1024,512,256,16x512,2048"}
SMALL_CASES = "64,128,4x64"
ENGINE = "engine"
_LEAST_PER_TURN, _MOST_PER_TURN = 3, 10
_TURN_S = 2.0  # for one side's turn, within these numbers of steps


@dataclass(frozen=True)
class Case:
    """So many square images in one step."""

    images: int
    side: int

    def __str__(self) -> str:
        return f"{self.images}×{self.side}²" if self.images > 1 else f"{self.side}²"


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
    """See the module. `ratio`: how many times as long as the engine each peer takes. The peak of memory includes the
    weights of a peer, if there is one."""

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


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", help="comma-separated: SIDE or IMAGESxSIDE, most important first")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="trace steps of the first case into it")
    add_options(parser, quantization="none,fp8")
    return run_main(_run, parser, sys.argv[1:] if words is None else words)


def _run(arguments: argparse.Namespace) -> Results:
    setup = read_options(arguments)
    cases = parse_cases("cases", arguments.cases or CASES.get(arguments.size, SMALL_CASES), setup.model.size_multiple)
    columns = ("step", "weights in", "attention", "graphs", "median", "p10", "p90", "noise", "floor", "of floor")
    results = Results("step", setup, (*columns, "TFLOP/s", "eager", "ratio", "compiled", "ratio"))
    ceilings = measure_ceilings(setup.model.transformer, setup.device, setup.dtype)
    note(f"this device reaches {ceilings}")
    peer = load_peer(setup)

    def measure(engine: Engine, case: Case) -> tuple[StepResult, Sequence[str]]:
        result = measure_case(engine, case, ceilings, peer)
        return result, _row(result)

    def profile(engine: Engine, case: Case) -> None:
        if arguments.profile is None or case is not cases[0]:
            return
        try:
            profile_steps(engine, case.images, case.side, arguments.profile)
        except Exception as error:  # not worth the engine, which has other cases to measure
            results.fail(f"the profile of {case} with {engine.version}", traceback.format_exc())
            raise_if_lost(error)

    measure_all(setup, cases, measure, results, decodes=False, after=profile)
    return results


def parse_cases(name: str, text: str, multiple: int) -> list[Case]:
    """Raises `ArgumentError`."""
    cases = []
    for word in text.split(","):
        images, _, side = word.rpartition("x")
        try:
            case = Case(int(images or 1), int(side))
        except ValueError:
            case = Case(0, 0)
        if case.images < 1 or case.side < multiple or case.side % multiple:
            raise ArgumentError.of(name, f"SIDE or IMAGESxSIDE, sides being multiples of {multiple}", text)
        cases.append(case)
    return cases


def measure_case(engine: Engine, case: Case, ceilings: Ceilings, peer: Peer | None = None) -> StepResult:
    """Time one case, with the peer if there is one."""
    setup, version = engine.setup, engine.version
    device, dit = setup.device, setup.model.transformer
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
    floor = step_floor(
        dit,
        segments,
        ceilings,
        fp8=version.quantization == "fp8",
        bytes_per_element=setup.bytes_per_element,
    )
    ours, peers = timings.pop(ENGINE), timings
    return StepResult(
        case=str(case),
        images=case.images,
        side=case.side,
        tokens=sum(segments),
        quantization=version.quantization,
        attention=engine.rank.attention.backend,
        cuda_graphs=engine.rank.has_step_graphs,
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


def _row(result: StepResult) -> list[str]:
    spread = result.engine.step_s
    row = [result.case, result.quantization, result.attention, "on" if result.cuda_graphs else "off"]
    row += [f"{seconds * 1e3:.1f} ms" for seconds in (spread.median, spread.p10, spread.p90)]
    row += [f"{result.engine.noise:.1%}", f"{result.floor_s * 1e3:.1f} ms", f"{result.of_floor:.0%}"]
    row.append(f"{result.flops_per_s / 1e12:.1f}")
    for mode in ("eager", "compiled"):
        timing = result.peers.get(mode)
        row += ["", ""] if timing is None else [f"{timing.step_s.median * 1e3:.1f} ms", f"{result.ratio[mode]:.2f}×"]
    return row


if __name__ == "__main__":
    end_with(main)
