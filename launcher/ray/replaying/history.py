"""What has become of a request in its attempts, and whether there is to be another. Pure.

A request is replayed until it has been in flight at three deaths; one that only waited where an engine died is not to
blame. Who has been accepted is waited for longer than who has not: that client can still be told to come back.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.errors import FilterUnavailableError, Krea2Error, QueueFullError, RequestKilledRanksError, ServerError
from launcher.messages.client_messages import LONGEST_REQUEST_ID, Accepted, Image, Preview, Progress

MOST_DEATHS = 3  # of ranks and engines, with the request in flight
MOST_REFUSALS = 3  # engines that do not take a request which nobody has accepted yet
MOST_UNCHECKED = 3  # engines whose content filters fail: it may be the request that they fail at
MOST_FULL = 2  # engines that say so, before its client is told
MOST_LOSSES = 20  # of engines where the request waited, before something else must be wrong
PATIENCE_S = 30.0  # for an engine that takes a request
LONG_PATIENCE_S = 300.0  # for one that takes a request which another had accepted: engines start that long
RETRY_AFTER_S = 5.0  # where nobody knows better
_MOST_AVOIDED = 16  # engines, the last that failed it
_ELSEWHERE = frozenset(("server_unavailable", "rank_failed", "launch_failed", "cancelled"))  # of an engine
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0


class LostError(Exception):
    """An attempt has ended without an end: `reason` in a word, `detail` for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class MovedError(Exception):
    """An attempt is given up that its engine has not begun, since the engine is being `stopped`, or `busy` for longer
    than another: `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Attempt:
    """What one engine has said of the request, which it calls `ticket`.

    name: of the engine, once it is known. rank_attempt: the engine's own count. begun: whether it has worked on it in
    that. images: those that have come. leaves_since: since when its engine is known to take no more requests.
    """

    ticket: str
    name: str | None = None
    heard: bool = False
    accepted: bool = False
    begun: bool = False
    rank_attempt: int = 1
    images: set[int] = field(default_factory=set)
    leaves_since: float | None = None

    def hear(self, reply: Accepted | Progress | Preview | Image) -> bool:
        """Take in what the engine says. Returns whether that is still so: what is said of ranks that are lost is not,
        but for images."""
        if reply.attempt > self.rank_attempt:
            self.rank_attempt, self.begun = reply.attempt, False
        self.accepted = True
        is_new = reply.attempt == self.rank_attempt
        self.begun |= is_new and not isinstance(reply, Accepted)
        return is_new or isinstance(reply, Image)


class History:
    """Keeps the attempts of the request `request_id`. Times are seconds of any clock.

    deaths: at which it was in flight. avoid: engines that have failed it, for any reason. was_accepted: by any engine.
    """

    def __init__(self, request_id: str, chance: Callable[[], float] = random.random) -> None:
        self._request_id, self._chance = request_id, chance
        self.deaths = self.moves = self.setbacks = 0
        self._unchecked = self._unchecked_begun = 0
        self.avoid: dict[str, None] = {}
        self.was_accepted = False
        self._full: list[QueueFullError] = []
        self._refused_by: list[str | None] = []  # engines
        self._losses = self._repeats = 0  # the latter: at engines that had failed it before
        self._homeless_s = 0.0  # that it was with no engine since one accepted it, and since when it is, where it is
        self._homeless_since: float | None = None
        self._why: Krea2Error | None = None  # the attempt before failed
        self._verdict: Krea2Error | None = None  # of ours, that ends the request

    @property
    def is_first(self) -> bool:
        """Whether no attempt has ended yet."""
        return not self.moves and not self.setbacks

    @property
    def restarts(self) -> int:
        """How often the work on it was lost: at deaths, and where an engine had begun it and could not check it."""
        return self.deaths + self._unchecked_begun

    def begin(self) -> Attempt:
        """Begin another attempt."""
        return Attempt(ticket_of(self._request_id, self.moves + self.setbacks + 1))

    def accepted(self) -> None:
        """Note that an engine has accepted the request."""
        self.was_accepted, self._homeless_s, self._homeless_since = True, 0.0, None

    def sent(self, now: float) -> None:
        """Note that an engine has the request, and may say something."""
        if self._homeless_since is not None:
            self._homeless_s, self._homeless_since = self._homeless_s + now - self._homeless_since, None

    def homeless(self, now: float, problem: str) -> None:
        """Note that no engine has it. Raises `ServerError`, or why the attempt before failed, when that is too long."""
        patience_s = LONG_PATIENCE_S if self.was_accepted else PATIENCE_S
        if self._homeless_since is None:
            self._homeless_since = now
        if self._homeless_s + now - self._homeless_since >= patience_s:
            told = f"{problem}, and the request has waited for {patience_s:g} s: try again in a moment"
            self._verdict = self._why or ServerError(told, retry_after_s=RETRY_AFTER_S)
            raise self._verdict

    # ---- how an attempt ended: each returns the seconds to wait before the next, or raises what ends the request

    def moved(self, attempt: Attempt) -> float:
        """Go on after an attempt that was given up before it began: that is nobody's fault."""
        self._avoid(attempt)
        self.deaths += attempt.rank_attempt - 1
        self.moves += 1
        return 0.0

    def failed(self, attempt: Attempt, error: Krea2Error) -> float:
        """Go on after an engine's own error, if that says more of the engine than of the request."""
        if isinstance(error, QueueFullError) and not is_too_short(error) and error is not self._verdict:
            return self._refused_full(attempt, error)
        if error.code == FilterUnavailableError.code and error is not self._verdict:
            return self._left_unchecked(attempt, error)
        if error.code not in _ELSEWHERE or error is self._verdict:
            raise error
        if error.code == "cancelled":  # whoever hangs up stops following: so it is no client's doing
            error = ServerError(f"the request was lost within the server: {error.message}")
        return self._gone(attempt, error)

    def lost(self, attempt: Attempt, loss: LostError) -> float:
        """Go on after an attempt whose engine died, or said what cannot be."""
        told = f"the engine that the request was sent to was lost ({loss.detail}): try again in a moment"
        # Who has never been heard has been dead before: many may have died at once, and not all be known to have.
        was_dead = loss.reason == "replica_lost" and not attempt.heard
        error = ServerError(told, retry_after_s=RETRY_AFTER_S)
        return self._gone(attempt, error, refused=not was_dead, waited=loss.reason == "replica_silent")

    def _gone(self, attempt: Attempt, error: Krea2Error, *, refused: bool = True, waited: bool = False) -> float:
        is_again = self._avoid(attempt)
        self.deaths += attempt.rank_attempt - 1 + int(attempt.begun)
        self._why = error
        self.setbacks += 1
        if self.deaths >= MOST_DEATHS:
            reason = f"engines or their ranks died {MOST_DEATHS} times, while this request was in flight"
            raise RequestKilledRanksError(f"{reason}: {error.message}")
        if attempt.accepted:
            self._losses += 1
        elif refused and (waited or attempt.name is None or attempt.name not in self._refused_by):
            self._refused_by.append(attempt.name)  # once: one that is about to end says so to all for a while
            self._check_refusals(error)
        if self._losses >= MOST_LOSSES:
            raise error
        return self._pause_s() if is_again else 0.0  # there may be others

    def _left_unchecked(self, attempt: Attempt, error: Krea2Error) -> float:
        """Go on after an engine whose content filter failed, which ends nothing there and is no death."""
        is_again = self._avoid(attempt)
        self.deaths += attempt.rank_attempt - 1
        self._why = error
        self.setbacks += 1
        self._unchecked += 1
        self._unchecked_begun += int(attempt.begun)
        if self._unchecked >= MOST_UNCHECKED:
            raise error
        return self._pause_s() if is_again else 0.0

    def _refused_full(self, attempt: Attempt, error: QueueFullError) -> float:
        self._avoid(attempt)
        self._full.append(error)
        self.setbacks += 1
        if self.was_accepted:
            self._why = error
            return min(_LONGEST_PAUSE_S, error.retry_after_s or _LONGEST_PAUSE_S)
        if len(self._full) >= MOST_FULL:
            raise self._soonest()
        self._check_refusals(error)
        return 0.0

    def _check_refusals(self, error: Krea2Error) -> None:
        if not self.was_accepted and len(self._full) + len(self._refused_by) >= MOST_REFUSALS:
            raise self._soonest() if self._full else error

    def _soonest(self) -> QueueFullError:
        """That of the engines which are full that has room first, as far as they know."""
        return min(self._full, key=lambda full: float("inf") if full.retry_after_s is None else full.retry_after_s)

    def _avoid(self, attempt: Attempt) -> bool:
        """Avoid the engine of an attempt. Returns whether that was so already."""
        if attempt.name is None:
            return True
        is_known = attempt.name in self.avoid
        self.avoid.pop(attempt.name, None)
        self.avoid[attempt.name] = None
        for name in [*self.avoid][:-_MOST_AVOIDED]:
            del self.avoid[name]
        return is_known

    def _pause_s(self) -> float:
        """Ever longer, and not the same for all whom one engine left."""
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._repeats, 16))
        self._repeats += 1
        return longest * (0.5 + 0.5 * self._chance())


def is_too_short(error: Krea2Error) -> bool:
    """Whether an engine refuses a request since it takes longer by itself than the time that it was sent with."""
    return isinstance(error, QueueFullError) and error.parameter == "timeout_s"


def ticket_of(request_id: str, number: int) -> str:
    """Name attempt `number`, from 1, of a request: with its own id, as far as that is short enough."""
    if number == 1:
        return request_id
    end = f".r{number}"
    if len(request_id) + len(end) > LONGEST_REQUEST_ID:
        end = f".{hashlib.sha256(request_id.encode()).hexdigest()[:12]}{end}"
    return request_id[: LONGEST_REQUEST_ID - len(end)] + end
