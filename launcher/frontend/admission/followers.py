"""Who waits for a request: whoever sent it, and who sent the same again."""

from __future__ import annotations

from typing import NamedTuple

from engine.errors import QueueFullError

MOST_FOLLOWERS = 64  # of one request at the same time


class Follower(NamedTuple):
    """Whom a request is answered: a client, by its ZMQ identity, and what it calls the request."""

    client: bytes
    request_id: str


def join(followers: list[Follower], follower: Follower) -> None:
    """Add somebody to those who follow a request. Raises `QueueFullError` if many do already."""
    if len(followers) >= MOST_FOLLOWERS:
        raise QueueFullError(f"{MOST_FOLLOWERS} others wait for the same request already", retry_after_s=1.0)
    followers.append(follower)
