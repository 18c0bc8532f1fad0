"""The tables of what was checked and timed."""

from __future__ import annotations

from collections.abc import Sequence

from bench.kernels.checks import Check
from bench.kernels.elementwise import Timed
from bench.kernels.rates import Rate
from bench.measure.output import print_table
from engine.planning.floor import Ceilings

COPY_SHARE = 0.8  # the target for elementwise kernels


def print_checks(checks: Sequence[Check]) -> None:
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


def print_timed(timed: Sequence[Timed], ceilings: Ceilings) -> None:
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


def print_rates(rates: Sequence[Rate], ceilings: Ceilings) -> None:
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
