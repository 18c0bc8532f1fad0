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
import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from bench.engines.real_size import model_of_size
from bench.kernels.cases import Operation, Random, Shape, Tensors, bytes_moved, elementwise_operations
from bench.kernels.checks import Check, check_all
from bench.kernels.rates import DTYPE, Rate, attention_backends, block_matrices, time_attention, time_product
from bench.kernels.timing import input_sets, time_kernel
from bench.measure.arguments import duration, end_with, image_sides, json_file
from bench.measure.floor import Ceilings
from bench.measure.lost import LOST, DeviceLost, raise_if_lost
from bench.measure.output import print_table, publish, publish_left_out
from bench.measure.timing import Budget, gpu_state, is_shared_now, measure_ceilings
from bench.survive import Attempts
from engine.config.degrees import PARALLEL_DEGREES
from engine.config.model_config import ModelConfig
from engine.kernels.fp8 import quantize_rows
from engine.kernels.packing import Packing

SIDES = {"real": (1024, 512, 2048), "tiny": (128,)}
COPY_SHARE = 0.8  # the target for elementwise kernels
_TEXT_TOKENS = {2048: 66}  # else 64; so the rows of 2048² are no multiple of 16
_RAGGED = (1, 77, 0, 130, 3)  # what is checked besides: many segments, odd, of one token, empty
_ROWS = {"real": (4096, 4160, 4224, 4225, 4352), "tiny": (80, 128)}  # of matrix products: where tiles fill waves or not
# What each of four ranks that share tokens has of 1024²: 17 rows of tiles at once, 16, or 16 and then what is left.
_PIECES = {"real": ((1040,), (1024,), (1024, 16)), "tiny": ((20,), (16,), (16, 4))}


@dataclass(frozen=True)
class Timed:
    """One elementwise kernel at one shape, in seconds. moved: bytes; share: of a copy's bandwidth; eager_s: plain
    PyTorch's median."""

    kernel: str
    tokens: int
    side: int
    tp: int
    median_s: float
    p10_s: float
    p90_s: float
    repeats: int
    moved: int
    bytes_per_s: float
    share: float
    eager_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=(__doc__ or "").split("\n")[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=sorted(SIDES), default="real" if on_gpu else "tiny")
    parser.add_argument("--sides", type=image_sides, help="of the square images, comma-separated")
    parser.add_argument("--tp", type=int, default=1, choices=PARALLEL_DEGREES, help="shapes of a rank of so many")
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
            _check(checks, [ragged, *shapes], device, options, budget, attempts)
            if not options.check_only and not budget.spent:
                ceilings = measure_ceilings(config.transformer, device, DTYPE)
                publish("ceilings", asdict(ceilings), options.json)
                _time(failures, shapes, device, ceilings, options, budget, attempts)
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


def time_elementwise(operation: Operation, shape: Shape, device: torch.device, tp: int, ceilings: Ceilings) -> Timed:
    """The engine's function and plain PyTorch on the same inputs."""
    random = Random.fresh(device, DTYPE)
    sets = [operation.draw(shape, random)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in sets[0].values())
    sets += [operation.draw(shape, random) for _ in range(input_sets(size, device) - 1)]
    spread = time_kernel([partial(operation.run, shape, inputs) for inputs in sets], device)
    eager = time_kernel([partial(_eager, operation, shape, inputs) for inputs in sets], device)
    moved = bytes_moved(operation, sets[0], operation.run(shape, sets[0]))
    rate = moved / spread.median
    return Timed(
        operation.name, shape.packing.tokens, shape.side, tp,
        spread.median, spread.p10, spread.p90, spread.count, moved, rate, rate / ceilings.copy_bytes, eager.median,
    )  # fmt: skip


def block_seconds(timed: Sequence[Timed], rates: Sequence[Rate], tokens: int, *, fp8: bool) -> float | None:
    """What the kernels of one block add up to, with the fastest attention: what a step could take, collectives and
    gaps left out. None if one of them was not measured at so many rows."""
    measured: list[Timed | Rate] = [*timed, *rates]
    seconds = {one.kernel: one.median_s for one in measured if one.tokens == tokens}
    attention = min((time for name, time in seconds.items() if name.startswith("attention ")), default=None)
    suffix, precision = (" → fp8", "fp8") if fp8 else ("", "bfloat16")
    norm = f"residual, norm, modulate{suffix}"
    names = [norm, norm, f"silu(gate) · up{suffix}", "q, k norm and rotation"]
    names += [f"{matrix} {precision}" for matrix in ("q|k|v|gate", "out", "gate|up", "down")]
    if attention is None or not seconds.keys() >= set(names):
        return None
    return attention + sum(seconds[name] for name in names)


def _check(
    checks: list[Check],
    shapes: Sequence[Shape],
    device: torch.device,
    options: argparse.Namespace,
    budget: Budget,
    attempts: Attempts,
) -> None:
    """Add to `checks`. Raises `DeviceLost`."""
    left_out: list[str] = []
    try:
        for shape in shapes:
            if budget.spent and checks:
                print(f"not checked at {shape.packing.tokens} tokens: the time was up")
                left_out.append(f"checks at {shape.packing.tokens} tokens")
                continue

            def begin(name: str, lengths: tuple[int, ...] = shape.packing.lengths) -> bool:
                return attempts.begin(f"the check of {name} at {lengths} tokens")

            for check in check_all(shape, device, options.tp, begin):
                publish("kernel_check", {**asdict(check), "holds": check.holds}, options.json)
                checks.append(check)
                if check.failure is not None:  # at once, and again at the end
                    print(f"FAILED: {check.kernel} at {check.tokens} tokens: {check.failure}", flush=True)
    finally:
        _print_checks(checks)
    publish_left_out(left_out, len(shapes), options.json)


def _print_checks(checks: Sequence[Check]) -> None:
    by_kernel: dict[str, list[Check]] = {}
    for check in checks:
        by_kernel.setdefault(check.kernel, []).append(check)
    print_table(
        ("checked against float64", "largest error", "bound", ""),
        [
            (
                kernel,
                f"{max(check.error for check in of_kernel):.1e}",
                f"{of_kernel[0].bound:.1e}",
                "ok" if all(check.holds for check in of_kernel) else "WRONG",
            )
            for kernel, of_kernel in by_kernel.items()
        ],
    )


def _time(
    failures: list[str],
    shapes: Sequence[Shape],
    device: torch.device,
    ceilings: Ceilings,
    options: argparse.Namespace,
    budget: Budget,
    attempts: Attempts,
) -> None:
    """The first shape whole, then the others, until the budget is spent. Adds what fails to `failures`. Raises
    `DeviceLost`."""
    timed: list[Timed] = []
    rates: list[Rate] = []
    left_out: list[str] = []
    count = 0

    def measure(name: str, call: Callable[[], Timed | Rate], benchmark: str = "kernel") -> None:
        nonlocal count
        count += 1
        if budget.spent:
            left_out.append(name)
            return
        if not attempts.begin(f"the timing of {name}"):
            return
        try:
            result = call()
        except Exception as error:
            print(f"FAILED: {name}: {traceback.format_exc()}", flush=True)
            failures.append(name)
            raise_if_lost(error)
            return
        shared = is_shared_now(device)
        publish(benchmark, {**asdict(result), "size": options.size, "gpu_shared": shared}, options.json)
        (timed if isinstance(result, Timed) else rates).append(result)  # type: ignore[arg-type]

    for shape in shapes:
        if (state := gpu_state(device)) is not None:
            publish("gpu", {"side": shape.side, **state}, options.json)
        at = f"{shape.packing.tokens} tokens"
        for operation in elementwise_operations():
            call: Callable[[], Timed | Rate]
            call = partial(time_elementwise, operation, shape, device, options.tp, ceilings)
            measure(f"{operation.name} at {at}", call)
        for backend, reason in attention_backends(shape.head_dim, device).items():
            if reason is None:
                call = partial(time_attention, backend, shape, device, options.tp, ceilings)
                measure(f"attention {backend} at {at}", call)
        if shape is shapes[0]:
            for name, matrix in block_matrices(shape).items():
                for rows in _ROWS[options.size]:
                    for fp8 in (False, True):
                        call = partial(time_product, name, matrix, rows, device, options.tp, ceilings, fp8=fp8)
                        measure(f"{name} {'fp8' if fp8 else 'bfloat16'} at {rows} rows", call)
                for pieces, fp8 in itertools.product(_PIECES[options.size], (False, True)):
                    arguments = name, matrix, sum(pieces), device, options.tp, ceilings
                    call = partial(time_product, *arguments, fp8=fp8, pieces=pieces)
                    measure(f"{name} {'fp8' if fp8 else 'bfloat16'} at {pieces} rows", call, "kernel_pieces")
    for fp8 in (False, True):
        seconds = block_seconds(timed, rates, shapes[0].packing.tokens, fp8=fp8)
        if seconds is not None:
            step = {"side": shapes[0].side, "tp": options.tp, "fp8": fp8, "block_s": seconds, "size": options.size}
            publish("kernel_sum", step, options.json)
            precision = "fp8" if fp8 else "bfloat16"
            print(f"{shapes[0].side}², {precision}: a block's kernels add up to {seconds * 1e6:.0f} µs")
    for backend, reason in attention_backends(shapes[0].head_dim, device).items():
        if reason is not None:
            print(f"attention {backend} is not here: {reason}")
    _print_timed(timed, ceilings)
    _print_rates(rates, ceilings)
    if left_out:
        print(f"{len(left_out)} measurements left out: the time was up")
    publish_left_out(left_out, count, options.json)


def _print_timed(timed: Sequence[Timed], ceilings: Ceilings) -> None:
    print(
        f"\na copy reaches {ceilings.copy_bytes / 1e9:.0f} GB/s, read and write; the target is {COPY_SHARE:.0%} of it"
    )
    print_table(
        ("kernel", "tokens", "µs", "p10", "p90", "GB/s", "of copy", "eager µs", "ratio"),
        [
            (
                one.kernel,
                str(one.tokens),
                *(f"{seconds * 1e6:.1f}" for seconds in (one.median_s, one.p10_s, one.p90_s)),
                f"{one.bytes_per_s / 1e9:.0f}",
                f"{one.share:.0%}",
                f"{one.eager_s * 1e6:.1f}",
                f"{one.eager_s / one.median_s:.1f}×",
            )
            for one in timed
        ],
    )


def _print_rates(rates: Sequence[Rate], ceilings: Ceilings) -> None:
    fp8 = "" if ceilings.fp8_flops is None else f", {ceilings.fp8_flops / 1e12:.0f} in fp8"
    print(f"\na large matrix product reaches {ceilings.matmul_flops / 1e12:.3g} TFLOP/s{fp8}")
    print_table(
        ("matrix product, attention", "rows", "µs", "p10", "p90", "TFLOP/s", "of ceiling"),
        [
            (
                one.kernel,
                str(one.tokens),
                *(f"{seconds * 1e6:.1f}" for seconds in (one.median_s, one.p10_s, one.p90_s)),
                f"{one.flops_per_s / 1e12:.1f}",
                f"{one.share:.0%}",
            )
            for one in rates
        ],
    )


def _eager(operation: Operation, shape: Shape, inputs: Tensors) -> None:
    """Plain PyTorch: computed in float32, rounded to the model's dtype or to fp8."""
    for output in operation.reference(shape, inputs, torch.float32).values():
        _ = quantize_rows(output, DTYPE) if operation.fp8 and output.ndim == 2 else output.to(DTYPE)


def _shape(config: ModelConfig, side: int, device: torch.device, tp: int) -> Shape:
    tokens = config.image_tokens(side, side) + _TEXT_TOKENS.get(side, 64)
    return Shape.of(config, Packing([tokens], device), side, tp)


if __name__ == "__main__":
    end_with(main)
