"""Keeps requests whose pictures are read or that filters check: from their arrival until they can be taken, or are
refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from engine.errors import Krea2Error
from launcher.awake import RealTimer
from launcher.frontend.admission import followers
from launcher.frontend.admission.examined import Examined
from launcher.frontend.admission.followers import Follower
from launcher.frontend.admission.repeats import Repeatable, digest_of
from launcher.messages.client_messages import Generate
from launcher.messages.encoding import Files, as_krea2_error
from launcher.pictures.prepared import PreparedPicture

Tell = Callable[[Follower, str, Krea2Error], None]
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[Any]"]


@dataclass(eq=False)
class Arrival:
    """A request that has come, and is not taken yet: who wants it, and since when by the monotonic clock.

    files: its pictures by their names, as they came, until they have been read, when picture_size is what they have
    become. timer: ends it after its own `timeout_s`.
    """

    followers: list[Follower]
    caller: str
    message: Generate
    came: float
    files: Files = field(default_factory=Files)
    picture_size: int = 0
    timer: RealTimer | None = None
    ended: bool = False  # as no request is that comes

    @cached_property
    def repeatable(self) -> Repeatable | None:
        """What a repetition of it is known by."""
        key = self.message.idempotency_key
        return None if key is None else Repeatable(self.caller, key)

    @cached_property
    def digest(self) -> bytes:
        """A digest of all that it asks for; to be asked for first while its files are there."""
        return digest_of(self.message, self.files)

    @property
    def request_id(self) -> str:
        """Its name in the log: what who sent it first calls it."""
        return self.message.request_id

    @property
    def size(self) -> int:
        """Bytes of its files that are held, or of its picture."""
        return self.picture_size + sum(map(len, self.files.values()))

    def was_read(self, picture: PreparedPicture) -> None:
        """Hold its files no longer."""
        self.files, self.picture_size = Files(), picture.size


class Arrivals:
    """Has requests examined, and says what came of it.

    on_examined: hears of an arrival and what is known of it, on_ended of one that is not to be taken. Neither is here
    any more then. tell: hears who is to be told of which error, and whose request it was.
    """

    def __init__(
        self,
        spawn: Spawn,
        *,
        on_examined: Callable[[Arrival, Examined], None],
        on_ended: Callable[[Arrival], None],
        tell: Tell,
    ) -> None:
        self._spawn = spawn
        self._on_examined, self._on_ended, self._tell = on_examined, on_ended, tell
        self._arrivals: dict[Arrival, asyncio.Task[Any]] = {}
        self._followed: dict[Follower, Arrival] = {}

    def __iter__(self) -> Iterator[Arrival]:
        """Go through the requests that are being examined, in the order in which they came."""
        return iter([*self._arrivals])

    def __len__(self) -> int:
        return len(self._arrivals)

    def followed_by(self, follower: Follower) -> Arrival | None:
        """Give what somebody follows under this name."""
        return self._followed.get(follower)

    def of_client(self, client: bytes) -> list[Follower]:
        """List the names under which a client follows any."""
        return [follower for follower in self._followed if follower.client == client]

    def begin(self, arrival: Arrival, examine: Coroutine[Any, Any, Examined]) -> None:
        """Have a request examined."""
        self._followed[arrival.followers[0]] = arrival
        self._arrivals[arrival] = self._spawn(self._follow(arrival, examine))

    def join(self, arrival: Arrival, follower: Follower) -> None:
        """Let somebody else follow a request. Raises `QueueFullError` if many do already."""
        followers.join(arrival.followers, follower)
        self._followed[follower] = arrival

    def leave(self, follower: Follower, error: Krea2Error) -> None:
        """Let somebody follow a request no more, if there is one that it follows: who does alone ends it."""
        arrival = self._followed.get(follower)
        if arrival is None:
            return
        if len(arrival.followers) == 1:
            self.refuse(arrival, error)
            return
        del self._followed[follower]
        arrival.followers.remove(follower)
        self._tell(follower, arrival.caller, error)

    def refuse(self, arrival: Arrival, error: Krea2Error) -> None:
        """End a request, if it is here: it cannot be taken, or nobody wants it any more."""
        if self._end(arrival):
            self.give_up(arrival, error)

    def give_up(self, arrival: Arrival, error: Krea2Error) -> None:
        """Tell all who follow a request that it cannot be taken."""
        self._on_ended(arrival)
        for follower in arrival.followers:
            self._tell(follower, arrival.caller, error)

    async def _follow(self, arrival: Arrival, examine: Coroutine[Any, Any, Examined]) -> None:
        try:
            examined = await examine
        except Exception as error:
            self.refuse(arrival, as_krea2_error(error))
        else:
            if self._end(arrival):
                self._on_examined(arrival, examined)

    def _end(self, arrival: Arrival) -> bool:
        """Forget a request. Returns whether it was here."""
        task = self._arrivals.pop(arrival, None)
        if task is None:
            return False
        for follower in arrival.followers:
            del self._followed[follower]
        if arrival.timer is not None:
            arrival.timer.cancel()
        arrival.files = Files()
        if task is not asyncio.current_task():
            task.cancel()
        return True
