"""Ranks of a benchmark that are processes, as in a server. None of them outlives the one that started them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parent.parent


class ProcessFailed(Exception):
    """A rank's process failed or was not done in time."""


def run_ranks(module: str, words: Sequence[str], ranks: int, folder: Path, deadline: float) -> None:
    """Run `python -m MODULE WORDS… --rank N --folder FOLDER --seconds S` for every rank until all have ended. Each must
    call `end_with_parent`, and leaves what it found in the new folder. Raises `ProcessFailed`."""
    folder.mkdir()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            seconds = max(1.0, deadline - time.monotonic())
            command = [sys.executable, "-m", module, *words, "--rank", str(rank)]
            command += ["--folder", str(folder), "--seconds", f"{seconds:.0f}"]
            with _log(folder, rank).open("wb") as log:
                processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=_ROOT))
        _wait(processes, folder, deadline)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def end_with_parent() -> None:
    """End this process when the one that started it is gone, which closes the pipe that is stdin here."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(0, 1)  # not sys.stdin, whose lock would be held at this process's own end
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _wait(processes: Sequence[subprocess.Popen[bytes]], folder: Path, deadline: float) -> None:
    """Until all have ended well. Raises `ProcessFailed` when the first one has not."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() not in (None, 0) for process in processes):
            break
        if time.monotonic() > deadline:
            waiting = [rank for rank, process in enumerate(processes) if process.poll() is None]
            raise ProcessFailed(f"ranks {waiting} of {len(processes)} were not done in time; {_said(folder, waiting)}")
        time.sleep(0.05)
    failed = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
    if failed:
        codes = [processes[rank].returncode for rank in failed]
        raise ProcessFailed(f"ranks {failed} of {len(processes)} ended with {codes}; {_said(folder, failed)}")


def _said(folder: Path, ranks: Sequence[int]) -> str:
    """The end of what the first of these ranks wrote."""
    lines = _log(folder, ranks[0]).read_text(errors="replace").strip().splitlines()
    said = "\n".join(["", *lines[-15:]]) if lines else " nothing"
    return f"rank {ranks[0]} said:{said}"


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.log"
