"""A few figures of what a part's lines say, beside their floors, for each benchmark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.report.__main__ import PRECISIONS, Result

Row = tuple[str, str, str]  # a figure, its floor or the like, and how it compares
_FLOOR_SHARE = "of the floor's speed"
_ALLOWED_SHARE = "of what is allowed"
_COUNTED = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")


def figures(lines: Sequence[str]) -> list[Row]:
    """A few of what a part's lines say, for each benchmark in the order in which they came."""
    by_benchmark: dict[str, list[Result]] = {}
    unreadable = 0
    for line in lines:
        try:
            result = json.loads(line)
            by_benchmark.setdefault(result["benchmark"], []).append(result)
        except (ValueError, KeyError, TypeError):
            unreadable += 1
    rows: list[Row] = []
    for benchmark, results in by_benchmark.items():
        try:
            rows += _FIGURES.get(benchmark, _count)(results)
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            rows.append((f"{benchmark}: {len(results)} results that this table cannot read: {error!r}", "", ""))
    if unreadable:
        rows.append((f"{unreadable} damaged lines", "", ""))
    return rows


def _steps(results: Sequence[Result]) -> list[Row]:
    """Of the first case in each version."""
    first: dict[tuple[Any, ...], Result] = {}
    for result in results:
        first.setdefault((result["quantization"], result["attention"], result["cuda_graphs"]), result)
    return [
        (
            f"{one['case']}, {_precision(one)}, {one['attention']}: {_ms(one['engine']['step_s']['median'])} a step",
            f"floor {_ms(one['floor_s'])}",
            f"{one['of_floor']:.0%} {_FLOOR_SHARE}",
        )
        for one in first.values()
    ]


def _images(results: Sequence[Result]) -> list[Row]:
    rows: list[Row] = []
    for one in results:
        wall_s, target_s, floor_s = one["wall_s"]["median"], one["target_s"], one["denoise_floor_s"]
        what = f"{one['side']}², {_precision(one)}"
        target = _target(target_s, "≤", " s", met=target_s is not None and wall_s <= target_s)
        share = f"{floor_s / wall_s:.0%} {_FLOOR_SHARE}"
        rows.append((f"{what}: {wall_s:.3f} s an image{target}", f"floor {floor_s:.3f} s", share))
        for mode, peer in one["peers"].items():
            said = f"{what}, diffusers {mode}: {peer['wall_s']['median']:.3f} s"
            rows.append((said, f"engine {wall_s:.3f} s", f"{peer['ratio']:.2f}× as long as the engine"))
        unseen = one.get("unseen_length")
        if unseen is not None:
            seen_s = unseen["seen_s"]["median"]
            said = f"{what}, a length not seen before: {unseen['difference_s']:+.3f} s"
            longer = unseen["unseen_s"]["median"] / seen_s
            rows.append((said, f"seen {seen_s:.3f} s", f"{longer:.2f}× as long as a length seen"))
            plan_s = unseen.get("plan_s", {}).get("median", 0.0)
            if plan_s:
                rows.append((f"{what}, its attention plan: {plan_s:.3f} s", "", "in idle time"))
    return rows


def _throughput(results: Sequence[Result]) -> list[Row]:
    rows: list[Row] = []
    for one in results:
        rate, target = one["images_per_s"], (one["target"] or {}).get("images_per_s")
        floor = one["images"] / one["floor_s"]
        what = f"{one['load']}, {_precision(one)}: {rate:.3f} images/s"
        what += _target(target, "≥", "", met=target is not None and rate >= target)
        rows.append((what, f"floor {floor:.3f} images/s", f"{one['of_floor']:.0%} {_FLOOR_SHARE}"))
    return rows


def _checks(results: Sequence[Result]) -> list[Row]:
    wrong = [one["kernel"] for one in results if not one["holds"]]
    said = f"{len(results) - len(wrong)} of {len(results)} checks hold"
    if wrong:
        return [(f"{said}; WRONG: {', '.join(dict.fromkeys(wrong))}", "", "")]
    worst = max(results, key=lambda one: one["error"] / one["bound"])
    what = f"{said}, the worst: {worst['kernel']}, relative error {worst['error']:.1e}"
    return [(what, f"{worst['bound']:.1e} allowed", f"{worst['error'] / worst['bound']:.0%} {_ALLOWED_SHARE}")]


def _kernels(results: Sequence[Result]) -> list[Row]:
    """The least of its ceiling, of elementwise kernels and of the others."""
    rows: list[Row] = []
    for what, ceiling, chosen, field, unit, scale in (
        ("elementwise", "a copy", [one for one in results if "moved" in one], "bytes_per_s", "GB/s", 1e9),
        (
            *("products and attention", "a large product", [one for one in results if "moved" not in one]),
            *("flops_per_s", "TFLOP/s", 1e12),
        ),
    ):
        if chosen:
            worst = min(chosen, key=lambda one: one["share"])
            rate, share = worst[field] / scale, worst["share"]
            name = f"{worst['kernel']}, {worst['tokens']} rows, {_number(rate)} {unit}"
            said = f"{what}, the least of {len(chosen)}: {name}"
            rows.append((said, f"{ceiling}, {_number(rate / share)} {unit}", f"{share:.0%} of {ceiling}'s speed"))
    return rows


def _sums(results: Sequence[Result]) -> list[Row]:
    precisions = {False: "bfloat16", True: "fp8"}
    return [
        (f"{one['side']}², {precisions[one['fp8']]}: {_ms(one['block_s'])} a block, by its kernels", "", "")
        for one in results
    ]


def _tests(results: Sequence[Result]) -> list[Row]:
    counts: dict[str, int] = {}
    for one in results:
        for number, what in _COUNTED.findall(one["summary"]):
            counts[what] = counts.get(what, 0) + int(number)
    said = ", ".join(f"{count} {what}" for what, count in counts.items()) or "no test ran to its end"
    bad = [
        Path(one["file"]).name + (f" ({one['summary']})" if one["status"] is None else "")
        for one in results
        if one["status"] != 0
    ]
    files = "1 file" if len(results) == 1 else f"{len(results)} files"
    return [(f"{said}, in {files}" + (f"; not well: {', '.join(bad)}" if bad else ""), "", "")]


def _parity(results: Sequence[Result]) -> list[Row]:
    rows: list[Row] = []
    for mode in dict.fromkeys(one["mode"] for one in results):
        of_mode = [one for one in results if one["mode"] == mode]
        worst = max(of_mode, key=lambda one: one["error"] / one["allowed"])
        said = "parity holds" if all(one["holds"] for one in of_mode) else "NO PARITY"
        what = f"{mode}: {said}, the worst in {worst['precision']}: latents differ by {worst['error']:.1e}"
        share = f"{worst['error'] / worst['allowed']:.0%} {_ALLOWED_SHARE}"
        rows.append((what, f"{worst['allowed']:.1e} allowed", share))
    return rows


def _fidelity(of: str, field: str) -> Callable[[Sequence[Result]], list[Row]]:
    def read(results: Sequence[Result]) -> list[Row]:
        errors = {one["variant"]: one[field] for one in results}
        shown = [name for name in ("bfloat16", "fp8") if name in errors]
        worst = max(errors, key=lambda name: errors[name])
        shown += [worst] if worst not in shown else []
        said = ", ".join(f"{name} {errors[name]:.1e}" for name in shown)
        return [(f"error of {of}, {len(errors)} variants: {said}", "", "")]

    return read


def _scaling(results: Sequence[Result]) -> list[Row]:
    """Of the first size and precision in each mode."""
    first: dict[str, Result] = {}
    for one in results:
        first.setdefault(one["mode"], one)
    return [
        (
            f"{one['mode']}, {one['side']}², {_precision(one)}: {_ms(one['step_s'])} a step, modelled",
            "",
            "" if one["of_one"] is None else f"{one['of_one']:.2f}× one rank's speed",
        )
        for one in first.values()
    ]


def _loads(results: Sequence[Result]) -> list[Row]:
    return [
        (
            f"{one['bytes'] / 1e9:.3g} GB of weights, {one['cache']} cache: {one['load_rate'] / 1e9:.2f} GB/s loaded",
            f"{one['read_rate'] / 1e9:.2f} GB/s read",
            f"{one['of_read']:.0%} of the read's speed",
        )
        for one in results
    ]


def _nothing(_: Sequence[Result]) -> list[Row]:
    return []


def _count(results: Sequence[Result]) -> list[Row]:
    return [(f"{results[0]['benchmark']}: {len(results)} results", "", "")]


_FIGURES: dict[str, Callable[[Sequence[Result]], list[Row]]] = {
    "step": _steps,
    "image": _images,
    "throughput": _throughput,
    "kernel_check": _checks,
    "kernel": _kernels,
    "kernel_sum": _sums,
    "kernel_tests": _tests,
    "shared_gpu": _parity,
    "fidelity_demo": _fidelity("the demo's latents", "latents_error"),
    "fidelity_blocks": _fidelity("random blocks' velocity", "velocity_error"),
    "scaling": _scaling,
    "load": _loads,
    "ceilings": _nothing,  # what others are compared with
    "gpu": _nothing,
    "left_out": _nothing,  # the table has a line of its own for it
}


def _target(value: float | None, sign: str, unit: str, *, met: bool) -> str:
    return "" if value is None else f" (target {sign} {value:.2f}{unit}: {'met' if met else 'MISSED'})"


def _precision(result: Result) -> str:
    """fp8, or the dtype, which on a CPU is another one."""
    return result.get("dtype", "bfloat16") if result["quantization"] == "none" else PRECISIONS[result["quantization"]]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
