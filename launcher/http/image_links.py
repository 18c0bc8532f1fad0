"""Images that are handed over as links, held in memory for a while under names that nobody can guess."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

HELD_S = 3600.0
HELD_BYTES = 512 * 2**20


class HeldFiles:
    """Files by name, each for `seconds`; beyond `max_bytes` in all, the oldest go first. `clock` gives seconds."""

    def __init__(
        self, max_bytes: int = HELD_BYTES, seconds: float = HELD_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes, self._seconds, self._clock = max_bytes, seconds, clock
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # the oldest first
        self._bytes = 0

    def add(self, file: bytes, suffix: str) -> str:
        """Hold a file; returns its new name, which ends in `suffix`."""
        name = f"{secrets.token_urlsafe(24)}.{suffix}"
        self._files[name] = (self._clock(), file)
        self._bytes += len(file)
        while self._bytes > self._max_bytes and len(self._files) > 1:
            self._drop_oldest()
        return name

    def get(self, name: str) -> bytes | None:
        """The file, or None if there is none of that name, or no more."""
        self.expire()
        held = self._files.get(name)
        return None if held is None else held[1]

    def expire(self) -> None:
        """Drop the files whose time is over."""
        while self._files and self._clock() - next(iter(self._files.values()))[0] > self._seconds:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (_, file) = self._files.popitem(last=False)
        self._bytes -= len(file)
