"""Checks and times every kernel at every shape, as far as there is time, and adds up what those of a block take."""

from __future__ import annotations

import argparse
import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import torch

from bench.kernels.cases import Shape
from bench.kernels.checks import Check, check_all
from bench.kernels.elementwise import Timed, elementwise_operations, time_elementwise
from bench.kernels.rates import Rate, attention_backends, block_matrices, time_attention, time_product
from bench.kernels.tables import print_checks, print_rates, print_timed
from bench.measure.lost import raise_if_lost
from bench.measure.output import publish, publish_left_out
from bench.measure.timing import Budget, gpu_state, is_shared_now
from bench.survive import Attempts
from engine.planning.floor import Ceilings

_ROWS = {"real": (4096, 4160, 4224, 4225, 4352), "tiny": (80, 128)}  # of matrix products: where tiles fill waves or not
# What each of four ranks that share tokens has of 1024²: 17 rows of tiles at once, 16, or 16 and then what is left.
_PIECES = {"real": ((1040,), (1024,), (1024, 16)), "tiny": ((20,), (16,), (16, 4))}


def check_shapes(
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
        print_checks(checks)
    publish_left_out(left_out, len(shapes), options.json)


def time_shapes(
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
    print_timed(timed, ceilings)
    print_rates(rates, ceilings)
    if left_out:
        print(f"{len(left_out)} measurements left out: the time was up")
    publish_left_out(left_out, count, options.json)


def block_seconds(timed: Sequence[Timed], rates: Sequence[Rate], tokens: int, *, fp8: bool) -> float | None:
    """Add up the kernels of one block, in seconds, with the fastest attention: what a step could take, collectives and
    gaps left out. None if one of them was not measured at `tokens` rows."""
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
