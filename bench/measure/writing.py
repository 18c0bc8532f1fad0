"""Adds lines to files, and remembers for the exit status whether one could not be added."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

_failed: list[Path] = []


def append_line(path: Path, line: str) -> bool:
    """Add the line to a file, whose folder is made if need be, at once. Where that fails, as on a full disk, stderr
    says why, no part of the line is left, and this is False."""
    before = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            before = file.tell()
            file.write(line + "\n")
    except OSError as error:
        print(f"error: a line cannot be added to {path}: {error.strerror}", file=sys.stderr, flush=True)
        if before is not None:
            with suppress(OSError), path.open("a") as file:
                file.truncate(before)
        _failed.append(path)
        return False
    return True


def all_written() -> bool:
    """Whether every line of this process could be added."""
    return not _failed
