"""The last table of bench/gpu.sh: of every part what came of it, and its key figures beside their floors.

    python -m bench.summary RESULTS < PARTS

PARTS has a line for each part, in the order they ran: its name, the bytes of RESULTS before and after it, and its
outcome, separated by tabs. Figures are read from these bytes alone, so those of earlier runs do not count. Ends with 3
if a part says that it is ok and has no figure.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.report import PRECISIONS, Result

HEADER = ("part", "outcome", "key figure", "floor", "ratio")
NO_NUMBER = "no number"
NO_FIGURES = 3  # the exit status
Row = tuple[str, str, str]  # a figure, its floor, and what share of it was reached

_SKIPPED = "skipped: "
_COUNTED = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print((__doc__ or "").split("\n\n")[1].strip(), file=sys.stderr)
        return 2
    parts = [line.rstrip("\n").split("\t") for line in sys.stdin if line.strip()]
    rows, missing = table(Path(arguments[0]), [(name, int(a), int(b), outcome) for name, a, b, outcome in parts])
    widths = [max(len(row[column]) for row in (HEADER, *rows)) for column in range(len(HEADER))]
    for row in (HEADER, tuple("-" * width for width in widths), *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return NO_FIGURES if missing else 0


def table(file: Path, parts: Sequence[tuple[str, int, int, str]]) -> tuple[list[tuple[str, ...]], bool]:
    """The rows below `HEADER`, and whether a part has no figure though it is ok. parts: see the module."""
    data = file.read_bytes() if file.is_file() else b""
    rows: list[tuple[str, ...]] = []
    missing = False
    for name, begin, end, outcome in parts:
        if outcome.startswith(_SKIPPED):
            rows.append((name, "skipped", outcome.removeprefix(_SKIPPED), "", ""))
            continue
        found = figures(data[begin:end].decode(errors="replace").splitlines())
        if not found and outcome.startswith("ok"):
            outcome, missing = f"FAILED: {NO_NUMBER}, {outcome.removeprefix('ok, ')}", True
        for index, row in enumerate(found or [(NO_NUMBER, "", "")]):
            rows.append((*((name, outcome) if index == 0 else ("", "")), *row))
    return rows, missing


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
            _ms(one["floor_s"]),
            f"{one['of_floor']:.0%}",
        )
        for one in first.values()
    ]


def _images(results: Sequence[Result]) -> list[Row]:
    rows: list[Row] = []
    for one in results:
        wall_s, target_s, floor_s = one["wall_s"]["median"], one["target_s"], one["denoise_floor_s"]
        what = f"{one['side']}², {_precision(one)}"
        target = _target(target_s, "≤", " s", met=target_s is not None and wall_s <= target_s)
        rows.append((f"{what}: {wall_s:.3f} s an image{target}", f"{floor_s:.3f} s", f"{floor_s / wall_s:.0%}"))
        for mode, peer in one["peers"].items():
            rows.append((f"{what}, diffusers {mode}: {peer['wall_s']['median']:.3f} s", "", f"{peer['ratio']:.2f}×"))
        unseen = one.get("unseen_length")
        if unseen is not None:
            seen_s = unseen["seen_s"]["median"]
            said = f"{what}, a length not seen before: {unseen['difference_s']:+.3f} s"
            rows.append((said, f"{seen_s:.3f} s", f"{seen_s / unseen['unseen_s']['median']:.0%}"))
    return rows


def _throughput(results: Sequence[Result]) -> list[Row]:
    rows: list[Row] = []
    for one in results:
        rate, target = one["images_per_s"], (one["target"] or {}).get("images_per_s")
        floor = one["images"] / one["floor_s"]
        what = f"{one['load']}, {_precision(one)}: {rate:.3f} images/s"
        what += _target(target, "≥", "", met=target is not None and rate >= target)
        rows.append((what, f"{floor:.3f} images/s", f"{one['of_floor']:.0%}"))
    return rows


def _checks(results: Sequence[Result]) -> list[Row]:
    wrong = [one["kernel"] for one in results if not one["holds"]]
    said = f"{len(results) - len(wrong)} of {len(results)} checks hold"
    if wrong:
        return [(f"{said}; WRONG: {', '.join(dict.fromkeys(wrong))}", "", "")]
    worst = max(results, key=lambda one: one["error"] / one["bound"])
    what = f"{said}, the worst: {worst['kernel']}, error {worst['error']:.1e}"
    return [(what, f"{worst['bound']:.1e} allowed", f"{worst['error'] / worst['bound']:.0%}")]


def _kernels(results: Sequence[Result]) -> list[Row]:
    """The least of its ceiling, of elementwise kernels and of the others."""
    rows: list[Row] = []
    for what, ceiling, chosen in (
        ("elementwise", "a copy", [one for one in results if "moved" in one]),
        ("products and attention", "a large product", [one for one in results if "moved" not in one]),
    ):
        if chosen:
            worst = min(chosen, key=lambda one: one["share"])
            name = f"{worst['kernel']}, {worst['tokens']} rows"
            rows.append((f"{what}, the least of {len(chosen)}: {name}", ceiling, f"{worst['share']:.0%}"))
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
    bad = [Path(one["file"]).name for one in results if one["status"] != 0]
    files = "1 file" if len(results) == 1 else f"{len(results)} files"
    return [(f"{said}, in {files}" + (f"; not well: {', '.join(bad)}" if bad else ""), "", "")]


def _parity(results: Sequence[Result]) -> list[Row]:
    rows: list[Row] = []
    for mode in dict.fromkeys(one["mode"] for one in results):
        of_mode = [one for one in results if one["mode"] == mode]
        worst = max(of_mode, key=lambda one: one["error"] / one["allowed"])
        said = "parity holds" if all(one["holds"] for one in of_mode) else "NO PARITY"
        what = f"{mode}: {said}, the worst in {worst['precision']}: error {worst['error']:.1e}"
        rows.append((what, f"{worst['allowed']:.1e} allowed", f"{worst['error'] / worst['allowed']:.0%}"))
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
            "" if one["of_one"] is None else f"{one['of_one']:.2f}× one",
        )
        for one in first.values()
    ]


def _loads(results: Sequence[Result]) -> list[Row]:
    return [
        (
            f"{one['cache']} cache: {one['load_rate'] / 1e9:.2f} GB/s loaded",
            f"{one['read_rate'] / 1e9:.2f} GB/s read",
            f"{one['of_read']:.0%}",
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
}


def _target(value: float | None, sign: str, unit: str, *, met: bool) -> str:
    return "" if value is None else f" (target {sign} {value:.2f}{unit}: {'met' if met else 'MISSED'})"


def _precision(result: Result) -> str:
    return PRECISIONS[result["quantization"]]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
