"""Many requests at once through the scheduler and a rank, at the real size with random weights, against the floor.

    python -m bench.throughput [--loads 20x1024,16x512] [--quantization none,fp8] [--peer diffusers] [--seconds N]

A load is COUNTxSIDE: COUNT images, each a request of its own with its own prompt, that all arrive at once.
Scheduler and rank are driven as the front-end drives them: one step ahead, at most eight images with the decoder, JPEG
files in threads. The floor is the denoising of all images at the rates that this run measured first (see
`engine.planning.floor`), and nothing else. A peer takes its images in batches of about as many tokens as a step of the
engine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.engines.cases import Case, parse_cases
from bench.engines.engine import Engine
from bench.engines.results import Results
from bench.engines.runner import Run, run_main
from bench.engines.setup import add_options, read_options
from bench.measure.arguments import check_positive, end_with
from bench.throughput.measuring import STEPS, TOKEN_BUDGET, Target, ThroughputResult, measure_load

LOADS = {"real": "20x1024,16x512"}
SMALL_LOADS = "4x64,4x128"


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
    peers = ("eager images/s", "ratio", "compiled images/s", "ratio")
    run: Run[Case, ThroughputResult] = Run("throughput", setup, (*columns, *peers))

    def measure(engine: Engine, load: Case) -> ThroughputResult:
        return measure_load(engine, load, run.ceilings, arguments.steps, arguments.token_budget, run.peer)

    return run.measure_all(loads, measure, _row)


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
