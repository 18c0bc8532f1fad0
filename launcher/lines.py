"""Writes lines to stderr without ever waiting for whoever reads it.

A terminal that was halted with Ctrl-S, a pipe that nobody reads and a full disk take nothing. Then one thread waits,
and nobody else does: what it has not written yet is bounded, further lines are dropped, counted, and told of.
"""

from __future__ import annotations

import io
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TextIO

LONGEST = 16 * 1024  # characters of a line
MAX_LINES, MAX_BYTES = 4096, 1 << 20  # that wait to be written
_AT_ONCE = 4096  # bytes; a pipe takes so many whole, whoever else writes to it
_LOOK_S = 0.005


class LineWriter:
    """Has a thread write lines to the file `fd`, each whole, in the order in which they were put.

    on_dropped: called in that thread, once half of the room is free again, with how many lines were dropped; what it
    puts comes where they are missing. `dropped`: how many in all.
    """

    def __init__(self, fd: int, *, on_dropped: Callable[[int], None], encoding: str = "utf-8") -> None:
        self.dropped = 0
        self._fd, self._on_dropped, self._encoding = fd, on_dropped, encoding
        self._queue: SimpleQueue[bytes] = SimpleQueue()  # whose put a finalizer may call in the middle of another
        self._lock = threading.RLock()  # for the same reason
        self._lines = self._bytes = 0  # that wait
        self._missing = 0  # dropped lines that were not told of yet
        self._full = self._telling = False
        self._torn = False  # whether the file ends within a line
        self._status = self._shown = b""  # the status line that is to be, and that is, below all others
        self._status_waits = False
        threading.Thread(target=self._run, name="stderr", daemon=True).start()

    def put(self, line: str) -> None:
        """Have a line without line breaks written, or drop it if too much waits already."""
        cut = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
        data = cut.encode(self._encoding, "backslashreplace") + b"\n"
        with self._lock:
            self._full = self._full or self._lines >= MAX_LINES or self._bytes + len(data) > MAX_BYTES
            if self._full:
                self.dropped += 1
                self._missing += 1
                return
            self._lines += 1
            self._bytes += len(data)
            self._queue.put(data)

    def show(self, status: str) -> None:
        """Keep a line below all others, in place of the one before, or none if it is empty. For a terminal."""
        with self._lock:
            self._status = status.encode(self._encoding, "backslashreplace")
            if not self._status_waits:  # or who halts the terminal would fill the queue
                self._status_waits = True
                self._lines += 1
                self._queue.put(b"")

    def flush(self, timeout_s: float) -> None:
        """Wait until all is written, `timeout_s` seconds at most."""
        deadline = time.monotonic() + timeout_s
        while (self._lines or self._telling) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

    def _run(self) -> None:
        ahead: bytes | None = None
        while True:
            lines = [self._queue.get() if ahead is None else ahead]
            ahead, size = None, len(lines[0])
            with suppress(Empty):
                while ahead is None:
                    line = self._queue.get_nowait()
                    if size + len(line) > _AT_ONCE:
                        ahead = line
                    else:
                        lines.append(line)
                        size += len(line)
            with self._lock:
                status, self._status_waits = self._status, self._status_waits and b"" not in lines
            self._overwrite(b"")
            lost = self._write(b"".join(lines))
            self._overwrite(status)
            self._take_out(len(lines), size, lost=lost)

    def _overwrite(self, status: bytes) -> None:
        """Write a status line over the one that is shown."""
        if status != self._shown:
            with suppress(OSError, ValueError):
                os.write(self._fd, (b"\r\033[K" if self._shown else b"") + status)
            self._shown = status

    def _take_out(self, lines: int, size: int, *, lost: int) -> None:
        missing = 0
        with self._lock:
            self._lines -= lines
            self._bytes -= size
            self.dropped += lost
            self._missing += lost
            if self._lines <= MAX_LINES // 2 and self._bytes <= MAX_BYTES // 2:
                self._full = False
                if not lost:  # or what is told of them would be lost, too
                    missing, self._missing = self._missing, 0
                    self._telling = missing > 0
        if missing:
            self._on_dropped(missing)
            self._telling = False

    def _write(self, data: bytes) -> int:
        """Write whole lines, however long that takes. Returns how many of them the file did not take."""
        begun = int(self._torn)  # then the line that the file ends with is ended first
        data = b"\n" * begun + data
        done = 0
        try:
            while done < len(data):
                try:
                    done += os.write(self._fd, memoryview(data)[done:])
                except BlockingIOError:  # somebody who shares the file wants no write to wait
                    select.select([], [self._fd], [], 1.0)
                    time.sleep(_LOOK_S)
        except (OSError, ValueError):  # nobody reads any more, or the disk is full
            if done:
                self._torn = data[done - 1 : done] != b"\n"
            return data.count(b"\n", max(done, begun))
        self._torn = False
        return 0


class StatusStream(io.TextIOBase):
    """What a bar on a terminal is written to, for a `LineWriter` to keep below the lines that others write."""

    def __init__(self, terminal: TextIO, writer: LineWriter) -> None:
        super().__init__()
        self._terminal, self._writer = terminal, writer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the terminal's own, which says whether a bar may have blocks."""
        return self._terminal.encoding

    def fileno(self) -> int:
        """Return the terminal's file, which knows how wide it is."""
        return self._terminal.fileno()

    def write(self, text: str) -> int:
        """Show what follows the last return to the line's beginning."""
        self._writer.show(text.rpartition("\r")[2].rstrip())
        return len(text)


class LineStream(io.TextIOBase):
    """Stands for a stream: gives `on_line` what is written to it, a whole line at a time, whichever threads write."""

    def __init__(self, original: TextIO, on_line: Callable[[str], object]) -> None:
        super().__init__()
        self._original, self._on_line = original, on_line
        self._begun = threading.local()  # a thread's line that has no end yet

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the stream's own: click writes to a stream that has none by another way."""
        return self._original.encoding

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def isatty(self) -> bool:
        """Say whether the stream is a terminal."""
        return self._original.isatty()

    def fileno(self) -> int:
        """Return the stream's file, for who writes past Python's streams."""
        return self._original.fileno()

    def write(self, text: str) -> int:
        """Take text, and hand on the lines that end in it."""
        *lines, rest = (getattr(self._begun, "text", "") + text).split("\n")
        if len(rest) > LONGEST:
            lines.append(rest)
            rest = ""
        self._begun.text = rest
        for line in lines:
            self._on_line(line)
        return len(text)
