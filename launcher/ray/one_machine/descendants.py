"""Finds and ends all processes that come from this one, whoever started them, by their ids.

A process that Ray starts may start others and leave them behind. Linux gives such orphans to the nearest ancestor that
has asked for them, so that none gets out of sight.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # of Linux
_LOOK_S = 0.02


def adopt_orphans() -> None:
    """Be from now on the parent of each process that comes from this one and has lost its own. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def descendants() -> list[int]:
    """List the ids of the processes that come from this one and run, each after its parent."""
    children: dict[int, list[int]] = {}
    for process, parent, has_ended in _processes():
        if not has_ended:
            children.setdefault(parent, []).append(process)
    found = [*children.get(os.getpid(), ())]
    for process in found:  # which grows
        found += children.get(process, ())
    return found


def bury_orphans(own: Container[int]) -> None:
    """Take the exit codes of those adopted that have ended, or they would stay as zombies until this process ends.

    own: the ids of the processes that this one has started, for whose codes somebody else waits.
    """
    for process, parent, has_ended in _processes():
        if has_ended and parent == os.getpid() and process not in own:
            with suppress(ChildProcessError):
                os.waitpid(process, os.WNOHANG)


def end_descendants(patience_s: float) -> list[int]:
    """Kill them all, and those that they start meanwhile. Returns the ids of those that still run after `patience_s`
    seconds, as one does that waits for a disk.

    Nobody else may wait for children of this process any more.
    """
    deadline = time.monotonic() + patience_s
    while running := descendants():
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() >= deadline:
            break
        _bury()
        time.sleep(_LOOK_S)
    _bury()
    return running


def _processes() -> Iterator[tuple[int, int, bool]]:
    """Tell of each process its id, its parent's, and whether it has ended."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                # The name before, in brackets, may have any characters.
                state, parent = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                yield int(entry), int(parent), state in ("Z", "X")


def _bury() -> None:
    """Take the exit codes of children that have ended, so that these are gone."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
