"""Ranks of a benchmark that are processes, as in a server. None of them outlives the one that started them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parent.parent.parent
_FAILING_S = 1.0  # for more ranks to fail after the first: whose peers are told of it need not be the cause
_LAST_WORDS_S = 3.0  # for ranks that hang to say where
_LINES = 40  # that are shown of a rank's output


class ProcessFailed(Exception):
    """A rank's process failed or was not done in time."""


def run_ranks(module: str, words: Sequence[str], ranks: int, folder: Path, deadline: float) -> None:
    """Run `python -m MODULE WORDS… --rank N --folder FOLDER --seconds S` for every rank until all have ended. Each must
    call `end_with_parent` and end by `arguments.end_with`, and leaves what it found in the new folder. Raises
    `ProcessFailed`."""
    folder.mkdir()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            seconds = max(1.0, deadline - time.monotonic())
            command = [sys.executable, "-m", module, *words, "--rank", str(rank)]
            command += ["--folder", str(folder), "--seconds", f"{seconds:.0f}"]
            with _log(folder, rank).open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=_ROOT, env=_environment()
                    )
                )
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


def _environment() -> dict[str, str]:
    """Of a rank: ours, with the loopback interface for gloo unless that was chosen, which else looks up the host's own
    name, that need not lead anywhere."""
    names = [name for _, name in socket.if_nameindex()]
    loopback = next((name for name in names if name in ("lo", "lo0")), names[0])
    defaults = {"GLOO_SOCKET_IFNAME": loopback, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    nccl = {"NCCL_DEBUG": "WARN", "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0"}  # as in a server
    return {**defaults, **nccl, **os.environ}


def _wait(processes: Sequence[subprocess.Popen[bytes]], folder: Path, deadline: float) -> None:
    """Until all have ended well. Raises `ProcessFailed` when the first one has not."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() not in (None, 0) for process in processes):
            break
        if time.monotonic() > deadline:
            waiting = [rank for rank, process in enumerate(processes) if process.poll() is None]
            for rank in waiting:
                processes[rank].terminate()  # at which it says where it is
            _wait_for_all(processes, _LAST_WORDS_S)
            raise ProcessFailed(f"ranks {waiting} of {len(processes)} were not done in time; {_said(folder, waiting)}")
        time.sleep(0.05)
    if any(process.poll() is None for process in processes):
        _wait_for_all(processes, _FAILING_S)
    failed = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
    if failed:
        codes = [processes[rank].returncode for rank in failed]
        raise ProcessFailed(f"ranks {failed} of {len(processes)} ended with {codes}; {_said(folder, failed)}")


def _wait_for_all(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    due = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < due:
        time.sleep(0.05)


def _said(folder: Path, ranks: Sequence[int]) -> str:
    """The end of what each of these ranks wrote."""
    said = []
    for rank in ranks:
        lines = _log(folder, rank).read_text(errors="replace").strip().splitlines()
        said.append(f"rank {rank} said:" + ("\n".join(["", *lines[-_LINES:]]) if lines else " nothing"))
    return "\n".join(said)


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.log"
