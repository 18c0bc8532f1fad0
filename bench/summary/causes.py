"""Finds in the log of bench/gpu.sh why a part failed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

WIDTH = 100  # characters of what a table shows
_MOST_READ = 1 << 24  # bytes, from the end

_FAILED = re.compile(r"FAILED:? |WRONG: |([\w. -]*: )?error: ")
_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Failed|Lost|Interrupt|Exit)\b")


def find_cause(log: Path | None, part: str) -> str | None:
    """The first line that tells a failure in what the part last said; else the last exception's. None without one."""
    if log is None or not log.is_file():  # /dev/full is none
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _MOST_READ))
        lines = file.read().decode(errors="replace").splitlines()
    said = _lines_of(part, lines)
    for index, line in enumerate(said):
        if _FAILED.match(line):
            if line.endswith(_TRACEBACK):
                line = line.removesuffix(_TRACEBACK) + (_exception(said[index + 1 :]) or "")
            return cut(line)
    exceptions = [line for line in said if _EXCEPTION.match(line)]
    return cut(exceptions[-1]) if exceptions else None


def cut(text: str) -> str:
    """To what fits into a table."""
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _lines_of(part: str, lines: Sequence[str]) -> Sequence[str]:
    """From the script's last line that the part begins, to its next."""
    begins = [index for index, line in enumerate(lines) if line.startswith(f"== {part} (at most ")]
    if not begins:
        return []
    rest = lines[begins[-1] + 1 :]
    return rest[: next((index for index, line in enumerate(rest) if line.startswith(f"== {part}: ")), len(rest))]


def _exception(lines: Sequence[str]) -> str | None:
    """What a traceback ends with."""
    return next((line for line in lines if line and not line[0].isspace()), None)
