"""What the ingresses of a cluster ask each other: how far a caller's requests are, and their metrics.

A load balancer may take each request of one client to another of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec

from launcher.http.apis.automatic1111.neighbours import Neighbours, Question, Seen
from launcher.messages.encoding import encode
from launcher.ray.web.summary import join_metrics

ANSWER_S = 1.0  # after which an ingress that hangs is passed over
_DEADLINE_S = ANSWER_S + 0.5  # for what the others have answered to come through

Answers = dict[str, bytes]  # by the name of the ingress
AskOthers = Callable[[bytes], Awaitable[Answers]]


class _AboutRequests(msgspec.Struct, frozen=True, tag="requests"):
    """Asks about all requests of a caller; answered by a list of `Seen`, whose ends are in seconds from then.

    asks: the ingress that does, which is among those asked, and knows its own.
    """

    asks: str
    caller: str
    question: Question


class _Metrics(msgspec.Struct, frozen=True, tag="metrics"):
    """Asks for metrics; answered by their text."""


_decode_question = msgspec.msgpack.Decoder(_AboutRequests | _Metrics).decode
_decode_seen = msgspec.msgpack.Decoder(list[Seen]).decode


class Ingresses:
    """This ingress among the others, of which `ask_others` asks all at once; None where there are none. name: its own.

    counts: writes what this one counts besides HTTP.
    """

    def __init__(self, name: str, ask_others: AskOthers | None, counts: Callable[[], bytes] = bytes) -> None:
        self._name, self._ask_others, self._counts = name, ask_others, counts
        self._render: Callable[[], bytes] = bytes
        self.neighbours = _Neighbours(name, self._ask)

    def answer(self, question: bytes) -> bytes:
        """Answer another ingress. Raises `msgspec.DecodeError` for a question of another release."""
        match _decode_question(question):
            case _AboutRequests(asks, caller, about):
                return encode([] if asks == self._name else self.neighbours.tell(caller, about))
            case _:
                return self._own_metrics()

    async def metrics(self, render: Callable[[], bytes]) -> bytes:
        """Give the metrics of all ingresses that answer, each with a label `ingress`."""
        self._render = render
        return join_metrics({self._name: self._own_metrics(), **await self._ask(_Metrics())}, "ingress")

    def _own_metrics(self) -> bytes:
        return self._render() + self._counts()

    async def _ask(self, question: msgspec.Struct) -> Answers:
        answers: Answers = {}
        if self._ask_others is None:
            return answers
        with suppress(TimeoutError):
            async with asyncio.timeout(_DEADLINE_S):
                answers = await self._ask_others(encode(question))
        return {name: answer for name, answer in answers.items() if name != self._name}


class _Neighbours(Neighbours):
    """What the other ingresses draw for a caller."""

    def __init__(self, name: str, ask: Callable[[msgspec.Struct], Awaitable[Answers]]) -> None:
        super().__init__("", None)
        self._name, self._ask_others = name, ask
        self._own: dict[str, list[Callable[[Question], Seen]]] = {}

    @asynccontextmanager
    async def asking(self, caller: str, tell: Callable[[Question], Seen]) -> AsyncIterator[None]:
        """Let the others ask about a request of the caller's meanwhile."""
        self._own.setdefault(caller, []).append(tell)
        try:
            yield
        finally:
            self._own[caller].remove(tell)
            if not self._own[caller]:
                del self._own[caller]

    async def ask(self, caller: str, question: Question) -> list[Seen]:
        """Ask the other ingresses about all requests of the caller."""
        answers = await self._ask_others(_AboutRequests(self._name, caller, question))
        found: list[Seen] = []
        for answer in answers.values():
            with suppress(msgspec.DecodeError):
                found += [_moved(seen, time.monotonic()) for seen in _decode_seen(answer)]
        return found

    def tell(self, caller: str, question: Question) -> list[Seen]:
        """Answer the question of another ingress about all requests of the caller."""
        return [_moved(tell(question), -time.monotonic()) for tell in [*self._own.get(caller, ())]]


def _moved(seen: Seen, seconds: float) -> Seen:
    """Move its end, between a machine's clock and seconds from now."""
    return seen if seen.ends is None else msgspec.structs.replace(seen, ends=seen.ends + seconds)
