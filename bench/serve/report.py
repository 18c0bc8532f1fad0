"""Prints the results of a load as they come, and writes their lines at the end."""

from __future__ import annotations

import argparse
import shlex
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.measure.output import json_line, print_table
from bench.serve.overhead import DispatchOverhead, HttpOverhead, PreviewOverhead
from bench.serve.traffic import REFUSED, Run
from engine.errors import ArgumentError


class Report:
    """Prints the results as they come, each as a table, and at the end as a JSON line each, also to `--json FILE`."""

    def __init__(self, arguments: argparse.Namespace, server: dict[str, Any]) -> None:
        self._file: Path | None = arguments.json
        self._common = {
            "command": shlex.join(["python", "-m", "bench.serve", *arguments.argv]),
            "server": server,
            "mix": [asdict(shape) for shape in arguments.mix],
        }
        self._lines: list[str] = []

    def load(self, run: Run, *, concurrency: int | None, rate: float | None) -> None:
        load = f"{rate:g} requests/s" if concurrency is None else f"{concurrency} at once"
        failed = len(run.outcomes) - run.images - run.failures.get(REFUSED, 0)
        counts = f"{run.images} images, {run.failures.get(REFUSED, 0)} refused, {failed} failed"
        print(
            f"{load}: {len(run.outcomes)} requests, {counts}; {run.images_per_s:.2f} images/s over {run.seconds:.1f} s"
        )
        stages = run.seconds_by_stage()
        print_table(
            ("seconds", "mean", "median", "p90", "p99", "max"),
            [
                (name, *(f"{value:.4f}" for value in (stage.mean, stage.median, stage.p90, stage.p99, stage.max)))
                for name, stage in stages.items()
            ],
        )
        messages = {outcome.failure: outcome.message for outcome in reversed(run.outcomes) if outcome.failure}
        for kind, count in run.failures.items():
            print(f"{count} × {kind}, the first: {messages[kind]}")
        self._add(
            "serve",
            concurrency=concurrency,
            rate=rate,
            requests=len(run.outcomes),
            images=run.images,
            failures=run.failures,
            seconds=run.seconds,
            images_per_s=run.images_per_s,
            stages_s={name: asdict(stage) for name, stage in stages.items()},
        )

    def ratio(self, base: int, base_run: Run, level: int, run: Run) -> None:
        ratio = run.images_per_s / base_run.images_per_s if base_run.images else None
        shown = "no image at the first" if ratio is None else f"{ratio:.2f}×"
        print(f"throughput of {level} at once to {base} at once: {shown}")
        self._add("serve_ratio", concurrency=level, base_concurrency=base, throughput_ratio=ratio)

    def dispatch(self, overheads: list[DispatchOverhead]) -> None:
        print_table(
            ("steps", "a step", "denoise", "between", "of the request, between stages"),
            [
                (
                    str(overhead.steps),
                    f"{overhead.tick_s * 1e3:.3f} ms",
                    f"{overhead.denoise_s * 1e3:.3f} ms",
                    f"{overhead.share:.2%}",
                    f"{overhead.beyond_share:.2%}",
                )
                for overhead in overheads
            ],
        )
        share = statistics.median(overhead.share for overhead in overheads)
        print(f"dispatch overhead: {share:.2%} of a step, the median of {len(overheads)} requests")
        self._add("serve_overhead", share=share, requests=[asdict(overhead) for overhead in overheads])

    def previews(self, overhead: PreviewOverhead) -> None:
        print(
            f"a preview takes {overhead.share:.2%} of a step: {overhead.with_s * 1e3:.3f} ms with one and "
            f"{overhead.without_s * 1e3:.3f} ms without, medians of {overhead.pairs} pairs"
        )
        self._add("serve_preview_overhead", **asdict(overhead))

    def http(self, overhead: HttpOverhead) -> None:
        print(
            f"HTTP adds {overhead.difference_s * 1e3:.2f} ms to RPC: {overhead.http_s * 1e3:.2f} ms and "
            f"{overhead.rpc_s * 1e3:.2f} ms, medians of {overhead.pairs} pairs"
        )
        self._add("serve_http_overhead", **asdict(overhead))

    def write(self) -> None:
        for line in self._lines:
            print(line)
        if self._file is not None:
            try:
                self._file.write_text("".join(f"{line}\n" for line in self._lines), encoding="utf-8")
            except OSError as error:
                raise ArgumentError(f"json: cannot write {self._file}: {error.strerror}", parameter="json") from None

    def _add(self, benchmark: str, **result: Any) -> None:
        self._lines.append(json_line(benchmark, {**result, **self._common}))
