"""Prints what pairs say as they are measured, then as a table, and a JSON line a case."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from bench.cluster.overhead import Difference, Overhead
from bench.measure.output import note, print_table, publish


class Report:
    """command: what was typed. file: for the JSON lines, stdout if None. is_control: both servers were `krea2 serve`,
    to which no bar applies."""

    def __init__(self, command: str, file: Path | None, is_control: bool) -> None:
        self._command, self._file, self._is_control = command, file, is_control
        self._measured: list[Overhead] = []

    def case(self, overhead: Overhead) -> None:
        """One that has been measured."""
        self._measured.append(overhead)
        note(f"{overhead.case.what}: {1e3 * overhead.added.median:.1f} ms more, {overhead.serve.count} pairs")

    def end(self) -> int:
        """Prints and writes all. Returns the exit status: 1 if a bar was missed."""
        headings = (
            "milliseconds",
            "pairs",
            "serve",
            "cluster",
            "all: median, 95 %",
            "outside: median, 95 %",
            "p10",
            "p90",
        )
        print_table((*headings, "engine: ratio, 95 %", "bar"), [self._row(overhead) for overhead in self._measured])
        missed = [] if self._is_control else [overhead for overhead in self._measured if overhead.missed]
        for overhead in missed:
            print(f"missed: {overhead.case.what}: {overhead.missed}")
        for overhead in self._measured:
            publish("cluster_control" if self._is_control else "cluster_overhead", self._line(overhead), self._file)
        return int(bool(missed))

    def _row(self, overhead: Overhead) -> list[str]:
        bar_s, engine = overhead.case.bar_s, overhead.engine
        return [
            overhead.case.what,
            str(overhead.serve.count),
            *(f"{1e3 * seconds:.1f}" for seconds in (overhead.serve.median, overhead.cluster.median)),
            _milliseconds(overhead.all),
            "" if overhead.outside is None else _milliseconds(overhead.outside),
            *(f"{1e3 * seconds:+.1f}" for seconds in (overhead.added.p10, overhead.added.p90)),
            "" if engine is None else f"{engine.median:.2f}, {engine.low:.2f} to {engine.high:.2f}",
            "" if bar_s is None else f"≤ {1e3 * bar_s:g}" + ("" if self._is_control else _verdict(overhead)),
        ]

    def _line(self, overhead: Overhead) -> dict[str, object]:
        return {
            "case": overhead.case.name,
            "serve_s": asdict(overhead.serve),
            "cluster_s": asdict(overhead.cluster),
            "all_s": asdict(overhead.all),
            "outside_s": None if overhead.outside is None else asdict(overhead.outside),
            "engine_ratio": None if overhead.engine is None else asdict(overhead.engine),
            "bar_s": overhead.case.bar_s,
            "missed": overhead.missed,
            "command": self._command,
        }


def _milliseconds(difference: Difference) -> str:
    median, low, high = (f"{1e3 * seconds:+.1f}" for seconds in (difference.median, difference.low, difference.high))
    return f"{median}, {low} to {high}"


def _verdict(overhead: Overhead) -> str:
    return ": missed" if overhead.missed else ": held"
