"""Appends lines to the files of an audit log, which rotate by size and are never deleted by us."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress

from engine.errors import ArgumentError

ROTATE_BYTES = 64 * 2**20
_MOST_PROCESSES = 1000  # that share a folder
_MOST_NAMES = 1000  # of files that were rotated within a second


class AuditLog:
    """A file of a folder that this process alone appends to: `audit.jsonl`, or `audit-2.jsonl` where another one has
    that, as the kernel's lock on a file beside it says, which ends with the process.

    A file that would grow above `most_bytes` gets the time as part of its name, and a new one is begun; so it is if
    another program has moved or removed it. Raises `ArgumentError` if the folder cannot be made or written to.
    """

    def __init__(
        self,
        folder: str,
        name: str = "audit",
        *,
        most_bytes: int = ROTATE_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._most_bytes, self._clock = most_bytes, clock
        self._file = -1
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._lock, stem = _own_name(folder, name)
            self.path = os.path.join(folder, f"{stem}.jsonl")
            self._open()
        except OSError as error:
            problem = error.strerror or str(error)
            raise ArgumentError(f"audit_log {folder} cannot be written to: {problem}", parameter="audit_log") from None

    def append(self, line: bytes) -> None:
        """Write a whole line. Raises `OSError` if that cannot be done, and then nothing of it is there."""
        if self._was_moved():
            self._open()
        if self._size and self._size + len(line) > self._most_bytes:
            self._rotate()
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            if written:  # half a line, as on a full disk
                with suppress(OSError):
                    os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)

    def close(self) -> None:
        """Let another process have the file."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def _open(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size
        if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":  # what a killed process left
            self._size += os.write(self._file, b"\n")

    def _was_moved(self) -> bool:
        own = os.fstat(self._file)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return True
        return (own.st_ino, own.st_dev) != (there.st_ino, there.st_dev)

    def _rotate(self) -> None:
        stem = self.path.removesuffix(".jsonl")
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        names = (f"{stem}.{when}{'' if number == 0 else f'-{number}'}.jsonl" for number in range(_MOST_NAMES))
        free = next((name for name in names if not os.path.lexists(name)), None)
        if free is not None:  # else it grows a little further
            os.rename(self.path, free)
            self._open()


def _own_name(folder: str, name: str) -> tuple[int, str]:
    """Lock the first name that no other process has. Returns the lock's descriptor and the name. Raises `OSError`."""
    for number in range(1, _MOST_PROCESSES + 1):
        stem = name if number == 1 else f"{name}-{number}"
        lock = os.open(os.path.join(folder, f".{stem}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        except OSError:
            os.close(lock)
            raise
        else:
            return lock, stem
    raise OSError(f"{_MOST_PROCESSES} processes write to it")
