"""One denoise step through the engine, at the real size with random weights, against its floor and diffusers.

    python -m bench.step [--cases 1024,512,16x512] [--quantization none,fp8] [--peer diffusers] [--seconds N]
                         [--profile FOLDER]

A case is the side of a square image, or IMAGESxSIDE for several packed into one step. The floor of a step is its
arithmetic at the rates that this run measured first (a large matrix product in bfloat16 or fp8, the best attention), or
the reading of its weights at the rate of a copy, whichever takes longer: see `engine.planning.floor`. Steps and those
of the peer take turns, A B C C B A; between the two turns of one side lies the noise, below which no difference counts.

--profile traces a few steps of each version's first case once that has been measured: the kernels that take longest
go to stderr, the trace (for ui.perfetto.dev) to a file in the folder.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from bench.engines.cases import Case, parse_cases
from bench.engines.engine import Engine
from bench.engines.results import Results
from bench.engines.runner import Run, run_main
from bench.engines.setup import add_options, read_options
from bench.measure.arguments import end_with
from bench.measure.lost import raise_if_lost
from bench.measure.output import note
from bench.step.measuring import StepResult, measure_case
from bench.step.profile import profile_steps

CASES = {"real": "1024,512,256,16x512,2048"}
SMALL_CASES = "64,128,4x64"


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
    run: Run[Case, StepResult] = Run("step", setup, (*columns, "TFLOP/s", "eager", "ratio", "compiled", "ratio"))
    note(f"this device reaches {run.ceilings}")

    def measure(engine: Engine, case: Case) -> StepResult:
        return measure_case(engine, case, run.ceilings, run.peer)

    def profile(engine: Engine, case: Case) -> None:
        if arguments.profile is None or case is not cases[0]:
            return
        try:
            profile_steps(engine, case.images, case.side, arguments.profile)
        except Exception as error:  # not worth the engine, which has other cases to measure
            run.results.fail(f"the profile of {case} with {engine.version}", traceback.format_exc())
            raise_if_lost(error)

    return run.measure_all(cases, measure, _row, decodes=False, after=profile)


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
