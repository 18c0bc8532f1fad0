"""Every kernel at the shapes of the real model: whether it is right, then how fast it is against what the GPU can do.

    python -m bench.kernels [--size real|tiny] [--sides 1024,512,2048] [--tp 1] [--check-only] [--seconds N]
                            [--json FILE]

Elementwise kernels are compared with float64 on fresh random input, over outputs that held NaN before. Then come their
GB/s, counted from the tensors of the call (each input read once, each output written once), as a share of what a copy
reaches on the same device, and how much longer plain eager PyTorch takes for the same. Attention, gate included, and
the matrix products of a block in bfloat16 and fp8 come as TFLOP/s beside a large square product. Times are the
device's own, of inputs that no cache holds. On a CPU, where `--size tiny` is the default, the engine's functions are
PyTorch themselves and the times say nothing. Ends with 1 if a kernel is wrong or raises an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

import torch

from bench.engines.real_size import model_of_size
from bench.kernels.cases import Shape
from bench.kernels.checks import Check
from bench.kernels.rates import DTYPE
from bench.kernels.sweep import check_shapes, time_shapes
from bench.measure.arguments import duration, end_with, image_sides, json_file
from bench.measure.lost import LOST, DeviceLost
from bench.measure.output import publish, publish_left_out
from bench.measure.timing import Budget, measure_ceilings
from bench.survive import Attempts
from engine.config.degrees import PARALLEL_DEGREES
from engine.config.model_config import ModelConfig
from engine.kernels.packing import Packing

SIDES = {"real": (1024, 512, 2048), "tiny": (128,)}
_TEXT_TOKENS = {2048: 66}  # else 64; so the rows of 2048² are no multiple of 16
_RAGGED = (1, 77, 0, 130, 3)  # what is checked besides: many segments, odd, of one token, empty


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=(__doc__ or "").split("\n")[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=sorted(SIDES), default="real" if on_gpu else "tiny")
    parser.add_argument("--sides", type=image_sides, help="of the square images, comma-separated")
    parser.add_argument("--tp", type=int, default=1, choices=PARALLEL_DEGREES, help="ranks; shapes are one rank's")
    parser.add_argument("--check-only", action="store_true", help="time nothing")
    parser.add_argument("--seconds", type=duration, help="leave out what does not fit")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="append the JSON lines to it")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if on_gpu else "cpu")
    budget = Budget(options.seconds)
    config = model_of_size(options.size)
    shapes = [_shape(config, side, device, options.tp) for side in options.sides or SIDES[options.size]]

    checks: list[Check] = []
    failures: list[str] = []
    attempts = Attempts()
    status = 0
    try:
        with torch.inference_mode():
            ragged = Shape.of(config, Packing(_RAGGED, device), 48, options.tp)
            check_shapes(checks, [ragged, *shapes], device, options, budget, attempts)
            if not options.check_only and not budget.spent:
                ceilings = measure_ceilings(config.transformer, device, DTYPE)
                publish("ceilings", asdict(ceilings), options.json)
                time_shapes(failures, shapes, device, ceilings, options, budget, attempts)
            elif not options.check_only:
                print("nothing is timed: the time was up")
                publish_left_out(["the timings"], 1, options.json)
    except DeviceLost as error:
        status = LOST
        failures.append(f"the GPU is lost, and whatever it would compute in this process: {error}")
    wrong = [check for check in checks if not check.holds]
    for check in wrong:
        print(f"WRONG: {check.kernel} at {check.tokens} tokens, tp {check.tp}: {check.failure or check.error}")
    for failure in failures:
        print(f"FAILED: {failure}")
    print(f"{len(checks) - len(wrong)} of {len(checks)} checks of kernels hold")
    return status or int(bool(wrong or failures))


def _shape(config: ModelConfig, side: int, device: torch.device, tp: int) -> Shape:
    tokens = config.image_tokens(side, side) + _TEXT_TOKENS.get(side, 64)
    return Shape.of(config, Packing([tokens], device), side, tp)


if __name__ == "__main__":
    end_with(main)
