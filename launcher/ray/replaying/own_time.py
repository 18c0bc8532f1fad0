"""The time that a request has by itself, over all its attempts, in seconds.

By a clock that stands still while this process does: an engine that goes on has a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.errors import RequestTimeoutError
from launcher.awake import AwakeClock
from launcher.messages.client_messages import Generate
from launcher.requests.check import MAX_TIMEOUT_S

_AT_ONCE_S = 0.1  # in which a request is sent on, of whose time nothing is taken then
_LEAST_S = 0.001  # for an attempt


class OwnTime:
    """Says what is left of the `timeout_s` of a request that comes now. `clock` is to be read every `TICK_S`.

    was_less: whether the last attempt was sent with less than all of it.
    """

    def __init__(self, request: Generate, clock: Callable[[], float]) -> None:
        self.clock = AwakeClock(clock)
        self.came = self.clock()
        self._timeout_s, self._has_key = request.timeout_s, request.idempotency_key is not None
        self.was_less = False

    @property
    def is_limited(self) -> bool:
        """Whether its time can be over; an engine refuses a `timeout_s` that is none."""
        return self._timeout_s is not None and 0 < self._timeout_s <= MAX_TIMEOUT_S

    def for_attempt(self) -> float | None:
        """Say what an attempt that is sent now is to have. With an idempotency key all that was asked for: by that too
        engines know whether it is the same request, and `check` sees to its end."""
        passed_s = self.clock() - self.came
        if self._timeout_s is None or not self.is_limited or self._has_key or passed_s < _AT_ONCE_S:
            return self._timeout_s
        self.was_less = True
        return max(_LEAST_S, self._timeout_s - passed_s)

    def check(self, grace_s: float = 0.0) -> None:
        """Raise `RequestTimeoutError` if its time has been over for so long."""
        if self._timeout_s is not None and self.is_limited and self.clock() - self.came >= self._timeout_s + grace_s:
            raise RequestTimeoutError.of(self._timeout_s)
