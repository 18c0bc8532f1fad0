"""Turns results into the table of docs/benchmarks.md and a plot.

    python -m bench.report [bench/results] [--check]

Reads every .jsonl and .json file of the folder, a result a line, as the benchmarks write them with `--json`. What
counts are results of the real size on a GPU that nobody else used, in bfloat16 or fp8, of each the newest, files being
taken in the order of their names, which begin with the date. The table goes between the markers in docs/benchmarks.md,
a row that nobody has measured saying so, and the plot to docs/results.svg as soon as there is anything to plot; it
needs matplotlib, of the `bench` extra. With --check nothing is written, and the exit status is 1 where the document
does not say what the results say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NOT_MEASURED = "not measured"
ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULT_FOLDER = ROOT / "bench" / "results"
DOCUMENT = Path("docs/benchmarks.md")
PLOT = Path("docs/results.svg")
STAGES = ("encode_s", "denoise_s", "decode_s", "file_s")
PRECISIONS = {"none": "bfloat16", "fp8": "fp8"}
COMPARISONS = {"eager": 1.4, "compiled": 1.15}
COMPILED_512 = 1.4
COPY_SHARE = 0.8

Result = dict[str, Any]


class ReportError(Exception):
    """A file that is no results, or a document without markers."""


@dataclass(frozen=True)
class Row:
    """One line of the table. measured: what a result says of it; None where `find` found none."""

    what: str
    against: str
    reach: str
    command: str
    find: Callable[[Sequence[Result]], str | None]

    def cells(self, results: Sequence[Result]) -> tuple[str, ...]:
        return (self.what, self.against, self.reach, self.find(results) or NOT_MEASURED, f"`{self.command}`")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER, help="of results (bench/results)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if docs/benchmarks.md differs")
    parser.add_argument("--root", type=Path, default=ROOT, help="where docs/ is")
    options = parser.parse_args(arguments)
    document = options.root / DOCUMENT
    try:
        if options.folder.resolve() != DEFAULT_FOLDER and not options.folder.is_dir():
            raise ReportError(f"there is no folder {options.folder}")
        results = read_results(options.folder)
        before = document.read_text()
        after = with_table(before, markdown(results))
        if options.check:
            if after != before:
                print(
                    f"error: {document} does not say what {options.folder} says: run python -m bench.report",
                    file=sys.stderr,
                )
            return int(after != before)
        if images(results):
            draw_plot(results, options.root / PLOT)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    document.write_text(after)
    print(f"{len(results)} results in {options.folder}")
    return 0


def read_results(folder: Path) -> list[Result]:
    """Read the results that count, oldest first. A folder that does not exist has none."""
    results = []
    for file in sorted([*folder.glob("*.jsonl"), *folder.glob("*.json")]):
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            if not line.strip():
                continue
            try:
                result = json.loads(line)
                counts = (
                    result["hardware"]["gpu"] is not None
                    and result.get("size") == "real"
                    and result.get("device", "cuda") == "cuda"
                    and result.get("dtype", "bfloat16") == "bfloat16"
                    and not result.get("gpu_shared", False)
                )
                result["benchmark"]
            except (ValueError, KeyError, TypeError):
                raise ReportError(f"{file}, line {number} is no result") from None
            if counts:
                results.append(result)
    return results


def newest(results: Iterable[Result], benchmark: str, **fields: object) -> Result | None:
    """The last result of a benchmark with these fields."""
    found = None
    for result in results:
        if result["benchmark"] == benchmark and all(result.get(name) == value for name, value in fields.items()):
            found = result
    return found


def with_table(document: str, table: str) -> str:
    """The document with `table` between its markers. Raises `ReportError` unless each is there once, in order."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise ReportError(f"{DOCUMENT} must have {BEGIN} and {END} once each, in this order")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def markdown(results: Sequence[Result]) -> str:
    """The table, the plot if there is one, and what was measured on."""
    lines = ["| what | against | reach | measured | command |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row.cells(results))} |" for row in rows()]
    if results:
        lines += ["", *sorted({_circumstances(result) for result in results})]
    if images(results):
        lines += ["", f"![Seconds of an image by stage, with the floor of its denoising]({PLOT.name})"]
    return "\n".join(lines)


def rows() -> list[Row]:
    """What the project has set out to reach on one H200."""
    return [
        _image(1024, "none", "SGLang publishes 1.56 s", "≤ 1.30 s"),
        _image(1024, "fp8", "its denoising's floor", "≤ 0.95 s"),
        _image(2048, "none", "its denoising's floor", "≤ 6.9 s"),
        _image(2048, "fp8", "its denoising's floor", "≤ 5.4 s"),
        _load(20, 1024, "none", "SGLang publishes 0.64 images/s, mean 16.5 s", "≥ 0.78 images/s, mean ≤ 13.5 s"),
        _load(20, 1024, "fp8", "its denoising's floor", "≥ 1.08 images/s, mean ≤ 13.5 s"),
        _load(16, 512, "none", "its denoising's floor", "≥ 80% of the floor's"),
        *(_peer(1024, mode, least) for mode, least in COMPARISONS.items()),
        _peer(512, "compiled", COMPILED_512),
        Row(
            "fused elementwise kernels, 1024²",
            "a copy on the same GPU",
            f"≥ {COPY_SHARE:.0%} of its bandwidth",
            "python -m bench.kernels",
            _slowest_kernel,
        ),
    ]


def _image(side: int, quantization: str, against: str, reach: str) -> Row:
    def find(results: Sequence[Result]) -> str | None:
        found = newest(results, "image", side=side, steps=8, quantization=quantization, peers={})
        if found is None:
            return None
        png_s = found["stages"]["png_s"]
        png = "" if png_s is None else f" (a PNG file takes {png_s * 1e3:.0f} ms)"
        denoise_s, floor_s = found["stages"]["denoise_s"], found["denoise_floor_s"]
        floor = f"denoising {denoise_s:.2f} s, {found['denoise_of_floor']:.0%} of which is its floor, {floor_s:.2f} s"
        return f"{found['wall_s']['median']:.2f} s{png}; {floor}"

    what = f"{side}², 8 steps, one image, {PRECISIONS[quantization]}, to the JPEG file"
    return Row(what, against, reach, f"python -m bench.image --sides {side} --quantization {quantization}", find)


def _load(count: int, side: int, quantization: str, against: str, reach: str) -> Row:
    def find(results: Sequence[Result]) -> str | None:
        found = newest(results, "throughput", images=count, side=side, steps=8, quantization=quantization)
        if found is None:
            return None
        speed = f"{found['images_per_s']:.2f} images/s, mean {found['latency_mean_s']:.1f} s"
        return f"{speed}; {found['of_floor']:.0%} of the floor's"

    what = f"{count} requests for {side}² at once, {PRECISIONS[quantization]}"
    command = f"python -m bench.throughput --loads {count}x{side} --quantization {quantization}"
    return Row(what, against, reach, command, find)


def _peer(side: int, mode: str, least: float) -> Row:
    def find(results: Sequence[Result]) -> str | None:
        with_peer = [result for result in results if mode in result.get("peers", {})]
        found = newest(with_peer, "image", side=side, steps=8, quantization="none")
        return None if found is None else f"{found['peers'][mode]['ratio']:.2f}×"

    command = f"python -m bench.image --sides {side} --peer diffusers"
    return Row(
        f"{side}², one image, bfloat16", f"diffusers, {mode}, same weights and run", f"≥ {least}×", command, find
    )


def _slowest_kernel(results: Sequence[Result]) -> str | None:
    kernels = {
        result["kernel"]: result
        for result in results
        if result["benchmark"] == "kernel" and "moved" in result and result["side"] == 1024 and result["tp"] == 1
    }
    if not kernels:
        return None
    reached = sum(result["share"] >= COPY_SHARE for result in kernels.values())
    worst = min(kernels.values(), key=lambda result: result["share"])
    return f"{reached} of {len(kernels)} do; the least, {worst['kernel']}, {worst['share']:.0%}"


def images(results: Sequence[Result]) -> list[Result]:
    """The newest result of each size and precision, for the plot. Those with a peer do not count, which
    bench/gpu.sh measures without idle seconds, and with the peer's weights in memory."""
    alone = [result for result in results if result["benchmark"] == "image" and not result["peers"]]
    found = {(result["side"], result["quantization"]): result for result in alone}
    return [found[key] for key in sorted(found, key=lambda key: (key[0], key[1] == "fp8"))]


def draw_plot(results: Sequence[Result], file: Path) -> None:
    """Stacked bars of the stages of an image, and its denoising's floor. Raises `ReportError` without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise ReportError("the plot needs matplotlib: pip install -e '.[bench]'") from None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "krea2"  # the same results give the same file
    from matplotlib import pyplot

    shown = images(results)
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.5 * len(shown)))
    names = [f"{result['side']}² {PRECISIONS[result['quantization']]}" for result in shown]
    left = [0.0] * len(shown)
    for stage in STAGES:
        seconds = [result["stages"][stage] or 0.0 for result in shown]
        axes.barh(names, seconds, left=left, label=stage.removesuffix("_s"))
        left = [start + length for start, length in zip(left, seconds, strict=True)]
    axes.barh(names, [result["outside_s"] for result in shown], left=left, label="outside")
    floors = [result["denoise_floor_s"] for result in shown]
    axes.scatter(floors, names, marker="|", s=300, color="black", label="floor of denoising", zorder=3)
    axes.invert_yaxis()
    axes.set_xlabel("seconds from prompt to JPEG file, 8 steps")
    axes.legend(fontsize="small")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _circumstances(result: Result) -> str:
    versions = result["versions"]
    software = f"torch {versions['torch']}, triton {versions['triton']}, cuDNN {versions['cudnn']}"
    return f"Random weights; {result['hardware']['gpu']}, {software}, commit {result['commit']}."


if __name__ == "__main__":
    sys.exit(main())
