"""Tells an engine that hangs from one that draws for long: the latter says every few seconds that it is there."""

from __future__ import annotations

from collections.abc import Callable

from launcher.ray.replaying.history import LostError

ALIVE_S = 5.0  # after which an engine with nothing to say of a request says that
SILENT_S = 25.0  # after which one is doubted that has not
_DOUBTED_S = 5.0  # for what has come meanwhile to be read, by a process that was stopped itself


class Silence:
    """How long an engine has said nothing to a request that was sent to it. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.heard()

    def heard(self) -> None:
        """Note that it has said something, or has been sent the request."""
        self._due, self._doubted = self._clock() + SILENT_S, False

    def look(self) -> float:
        """Return the seconds until this is to be asked again. Raises `LostError` if it hangs."""
        now = self._clock()
        if now >= self._due:
            if self._doubted:
                raise LostError("replica_silent", f"it has said nothing for {SILENT_S + _DOUBTED_S:g} s")
            self._due, self._doubted = now + _DOUBTED_S, True
        return self._due - now
