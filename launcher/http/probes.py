"""Which requests of probes are worth a line of the log: those who ask all the time get the same answer all the time."""

from __future__ import annotations

PROBED = ("/health", "/ready", "/health_generate", "/metrics")
AGAIN_S = 60.0  # between lines about the same


class Probes:
    """Remembers what was logged of the probed routes: an answer that went wrong is logged when it is new, then once a
    minute, with how many there were since."""

    def __init__(self) -> None:
        self._logged: dict[tuple[str, int], float] = {}  # when, by path and status
        self._left_out: dict[tuple[str, int], int] = {}

    def count(self, path: str, status: int, now: float, *, failed: bool) -> int:
        """Count an answer. Returns how many answers a line about it stands for, 0 if there is to be none.

        status: 0 if there was no answer. now: seconds of a clock that never goes back.
        """
        if not failed:
            for known in [known for known in self._logged if known[0] == path and not 400 <= known[1] < 500]:
                del self._logged[known]  # the next fault is news
            return 0
        key = path, status
        self._left_out[key] = self._left_out.get(key, 0) + 1
        if key in self._logged and now - self._logged[key] < AGAIN_S:
            return 0
        self._logged[key] = now
        return self._left_out.pop(key)
