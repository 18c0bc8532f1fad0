"""How a denoise step scales over 2 and 4 GPUs: each mode's compute, measured, and its communication.

    python -m bench.scaling [--modes one,tp2,sp2,…] [--sides 512,1024,2048] [--guided] [--quantization none,fp8]
                            [--bandwidth 340] [--exchange-bandwidth 250] [--latency 13] [--measure] [--seconds N]
                            [--json FILE]

One device is enough: rank 0's part of a step is timed with the other ranks not there, and what it would send is added
at `--bandwidth` GB/s a direction, rows for heads at `--exchange-bandwidth`, plus `--latency` µs for every operation
that waits for other ranks, nothing overlapping anything: a little much, since the gate's product hides the exchange
before attention. Such times are modelled, and say so; the VAE, prompts and the host are not in them. With `--guided` an
image has two segments.

Rank 0 counts what it sends, which must be what `engine.planning.work_division.sent_in_step` says, to the byte: if it is
not, this ends with 1. With `--measure` every mode also runs for real, a process a rank, each on a GPU of its own, or on
the CPU with gloo.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.engines.rank_processes import ProcessFailed, end_with_parent
from bench.engines.results import Results
from bench.engines.runner import run_main
from bench.engines.setup import add_options, read_options
from bench.measure.arguments import end_with, modes, parse_sides
from bench.measure.output import note, publish_left_out
from bench.measure.timing import gpu_state
from bench.scaling.mesh_groups import lone_mesh
from bench.scaling.modelled import Scaling, model_step
from bench.scaling.ranks import measure_ranks, run_rank
from bench.scaling.steps import time_steps
from engine.errors import ArgumentError

MODES = "one,tp2,sp2,tp4,tp2xsp2,sp4"
GUIDED_MODES = "one,cfg,tp2,sp2,tp2xcfg,sp2xcfg,tp4,tp2xsp2,sp4"
SIDES, SMALL_SIDES = "1024,512,2048", "64,96"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--modes", type=modes, help=f"comma-separated ({MODES}; with --guided {GUIDED_MODES})")
    parser.add_argument("--sides", help="of the image, comma-separated")
    parser.add_argument("--guided", action="store_true", help="two segments an image")
    parser.add_argument("--bandwidth", type=float, default=340.0, help="GB/s that a rank sends at (340)")
    parser.add_argument(
        "--exchange-bandwidth", type=float, default=250.0, help="the same where it exchanges rows for heads (250)"
    )
    parser.add_argument("--latency", type=float, default=13.0, help="µs of an operation that waits for others (13)")
    parser.add_argument("--measure", action="store_true", help="run all ranks of every mode too")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)  # a process of a mode
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    add_options(parser, quantization="none,fp8")
    try:
        return run_main(_run, parser, sys.argv[1:] if words is None else words)
    except ProcessFailed as error:
        note(f"error: {error}")
        return 1


def _run(arguments: argparse.Namespace) -> Results | None:
    for name in ("bandwidth", "exchange_bandwidth"):
        if not getattr(arguments, name) > 0:
            raise ArgumentError.of(name, "above 0", getattr(arguments, name))
    if not arguments.latency >= 0:
        raise ArgumentError.of("latency", "0 or more", arguments.latency)
    setup = read_options(arguments)
    chosen = arguments.modes or modes(GUIDED_MODES if arguments.guided else MODES)
    sides = parse_sides(
        "sides", arguments.sides or (SIDES if arguments.size == "real" else SMALL_SIDES), setup.model.size_multiple
    )
    if arguments.rank is not None:
        end_with_parent()
        run_rank(arguments, setup, chosen[0], sides)
        return None
    columns = ("mode", "weights in", "image", "compute", "sent", "operations", "communication", "step (modelled)")
    results = Results("scaling", setup, (*columns, "× one rank", "measured", "counted"))
    if setup.peer != "none":
        raise ArgumentError.of("peer", "none", setup.peer)
    left_out: list[str] = []
    versions = list(dict.fromkeys(replace(version, cuda_graphs=False) for version in setup.versions))
    for version in versions:
        alone: dict[int, float] = {}
        for degrees in chosen:
            if setup.budget.spent and results.any:
                note(f"{degrees.name} with {version} is left out: the time is up")
                left_out.append(f"{degrees.name} with {version}")
                continue
            try:
                setup.model.check_parallel(degrees.tp, degrees.sp)
            except ArgumentError as error:
                note(f"{degrees.name} is left out: {error}")
                continue
            mesh, before = lone_mesh(degrees), gpu_state(setup.device)
            timed = time_steps(setup, version, degrees, mesh, setup.device, sides, arguments.guided)
            gc.collect()  # the rank refers to itself, and holds memory that rank 0's process needs
            torch.cuda.empty_cache()
            measured = measure_ranks(arguments, setup, version, degrees) if arguments.measure else {}
            gpu = before, gpu_state(setup.device)
            for side in sides:
                result = model_step(
                    arguments,
                    setup,
                    version,
                    degrees,
                    side,
                    gpu,
                    timed[side],
                    measured.get(side),
                    alone.get(side),
                )
                if degrees.ranks == 1:
                    alone[side] = result.step_s
                results.add(result, _row(result))
                if not result.as_stated:
                    results.fail(f"{result.mode} at {side}²", "rank 0 did not send what the formula says")
    publish_left_out(left_out, len(versions) * len(chosen), setup.json)
    return results


def _row(result: Scaling) -> list[str]:
    row = [
        result.mode,
        result.quantization,
        f"{result.side}²",
        _ms(result.compute_s),
        f"{result.sent_bytes / 1e6:.1f} MB",
    ]
    row += [str(result.operations), _ms(result.communication_s), _ms(result.step_s)]
    row.append("" if result.of_one is None else f"{result.of_one:.2f}×")
    row.append("" if result.measured_s is None else _ms(result.measured_s))
    row.append("as stated" if result.as_stated else "DIFFERS")
    return row


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


if __name__ == "__main__":
    end_with(main)
