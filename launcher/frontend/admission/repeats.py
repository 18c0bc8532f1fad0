"""Knows requests by their idempotency keys, so that one that comes again is not made again. Pure.

A request that comes again while the first runs joins it, and afterwards gets its answer. The keys of one caller mean
nothing to another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import msgspec

from engine.errors import IdempotencyConflictError
from launcher.messages.client_messages import Generate
from launcher.messages.encoding import Files, encode

KEPT_S = 600.0  # an answer, after the end of its request
KEPT_BYTES = 256 * 2**20  # of all answers; above that, or above so many, the oldest go first
KEPT_ANSWERS = 4096
# Failures after which the same may work, so that a repetition is a request of its own.
_PASSING = frozenset(
    (
        "queue_full",
        "rate_limited",
        "timeout",
        "cancelled",
        "rank_failed",
        "launch_failed",
        "server_unavailable",
        "filter_unavailable",
    )
)

Request = TypeVar("Request")


class Repeatable(NamedTuple):
    """What a repetition is known by: whose it is, and the key that the caller gave it."""

    caller: str
    key: str


@dataclass
class _Entry(Generic[Request]):
    digest: bytes
    request: Request
    size: int = 0  # of the answer, in bytes
    kept_until: float | None = None  # None while it runs


class Repeats(Generic[Request]):
    """Keeps requests that have a key while they run, and their answers for a while after that. Times are seconds of any
    clock."""

    def __init__(self) -> None:
        self._entries: dict[Repeatable, _Entry[Request]] = {}  # those that have ended in the order in which they did
        self._bytes = 0

    def find(self, name: Repeatable, digest: bytes) -> Request | None:
        """Give the request of this name, if there is one. digest: of what is asked for, by `digest_of`.

        Raises `IdempotencyConflictError` if it asked for something else.
        """
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry.digest != digest:
            known_s = f"for {KEPT_S / 60:g} minutes after its end"
            raise IdempotencyConflictError(
                f"the Idempotency-Key {name.key[:80]!a} is that of a request with other parameters: give each request "
                f"a key of its own, which means that request while it runs and {known_s}"
            )
        return entry.request

    def begin(self, name: Repeatable, digest: bytes, request: Request) -> None:
        """Know a request that begins, under a name that has none, or in place of what it was until now."""
        self._entries[name] = _Entry(digest, request)

    def forget(self, name: Repeatable) -> None:
        """Forget a request that runs: the same is to be made anew."""
        del self._entries[name]

    def end(self, name: Repeatable, size: int, failed: str | None, now: float) -> None:
        """Keep the answer of a request, of so many bytes or with this error code, unless asking again may help."""
        entry = self._entries.pop(name)
        if failed in _PASSING:
            return
        entry.size, entry.kept_until = size, now + KEPT_S
        self._entries[name] = entry
        self._bytes += size
        kept = [name for name, entry in self._entries.items() if entry.kept_until is not None]
        while self._bytes > KEPT_BYTES or len(kept) > KEPT_ANSWERS:
            self._drop(kept.pop(0))

    def expire(self, now: float) -> None:
        """Drop the answers whose time is up."""
        for name, entry in list(self._entries.items()):
            if entry.kept_until is not None and entry.kept_until <= now:
                self._drop(name)

    def _drop(self, name: Repeatable) -> None:
        self._bytes -= self._entries.pop(name).size


def digest_of(message: Generate, files: Files) -> bytes:
    """A digest of all that a request asks for, its pictures' files among it."""
    asked = msgspec.structs.replace(message, request_id="-", caller=None, idempotency_key=None)
    return hashlib.sha256(encode(asked) + files.digest).digest()
