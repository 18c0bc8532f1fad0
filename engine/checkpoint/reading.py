"""How much of what it is to read of a checkpoint a rank has read, in bytes of the files."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Reading:
    """Counts the bytes that a rank has read, in whichever threads read.

    tell: called with the bytes that are `done` and the `total`, in the thread that calls `look`, which waits for the
    others and does so several times a second.
    """

    def __init__(self, total: int = 0, tell: Callable[[int, int], None] = lambda done, total: None) -> None:
        self.done, self.total = 0, total
        self._tell, self._lock = tell, threading.Lock()

    def advance(self, size: int) -> None:
        """Count `size` more bytes. Any thread may call it."""
        with self._lock:
            self.done += size

    def look(self) -> None:
        """Tell how much is done now."""
        self._tell(self.done, self.total)
