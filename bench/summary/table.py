"""The rows of the table: of every part what came of it, its figures, and why it failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.summary.causes import cut, find_cause
from bench.summary.figures import figures

HEADER = ("part", "outcome", "key figure", "compared with", "which makes")
NO_NUMBER = "no number"
_SKIPPED = "skipped: "


@dataclass(frozen=True)
class Table:
    """The rows below `HEADER`. lacks_figures: of a part that is ok."""

    rows: list[tuple[str, ...]]
    any_figure: bool
    lacks_figures: bool


def table(file: Path, parts: Sequence[tuple[str, int, int, str]], log: Path | None = None) -> Table:
    """parts, log: see bench/summary/__main__.py."""
    data = file.read_bytes() if file.is_file() else b""
    rows: list[tuple[str, ...]] = []
    any_figure = lacks_figures = False
    for name, begin, end, outcome in parts:
        if outcome.startswith(_SKIPPED):
            rows.append((name, "skipped", outcome.removeprefix(_SKIPPED), "", ""))
            continue
        lines = data[begin:end].decode(errors="replace").splitlines()
        found = figures(lines)
        any_figure = any_figure or bool(found)
        if not found and outcome.startswith("ok"):
            outcome, lacks_figures = f"FAILED: {NO_NUMBER}, {outcome.removeprefix('ok, ')}", True
        shown = found or [(NO_NUMBER, "", "")]
        shown += [(said, "", "") for said in left_out(lines)]
        if outcome.startswith("FAILED") and (cause := find_cause(log, name)) is not None:
            shown.append((cause, "", ""))
        for index, row in enumerate(shown):
            rows.append((*((name, outcome) if index == 0 else ("", "")), *row))
    return Table(rows, any_figure, lacks_figures)


def left_out(lines: Sequence[str]) -> list[str]:
    """What each line says that there was no time for."""
    said = []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            result = json.loads(line)
            if result["benchmark"] == "left_out":
                what = result["what"]
                said.append(cut(f"the time was up for {len(what)} of {result['of']}: {', '.join(what)}"))
    return said
