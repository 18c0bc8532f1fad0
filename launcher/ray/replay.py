"""Has a request made by one engine after another until it is made: whoever asked sees one request.

Knows no Ray: `Send` is the way to an engine, which the router chooses, and `Fleet` what is known of the engines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing, suppress

import msgspec

from engine.errors import Krea2Error, RequestTimeoutError, ServerError
from launcher.awake import TICK_S
from launcher.client.async_client import NO_FILES
from launcher.logs import log_event, log_exception
from launcher.messages.client_messages import Accepted, Generate, Reply
from launcher.messages.encoding import as_krea2_error, describe, encode_request
from launcher.parameters.values import PICTURES
from launcher.ray.fleet import Fleet
from launcher.ray.replaying.counts import Counts
from launcher.ray.replaying.ending import drain, end
from launcher.ray.replaying.held import Held, Holding
from launcher.ray.replaying.history import Attempt, History, LostError, MovedError, is_too_short
from launcher.ray.replaying.own_time import OwnTime
from launcher.ray.replaying.retelling import Usual, routing_key, with_seed, work_of
from launcher.ray.replaying.silence import Silence
from launcher.ray.replaying.telling import Telling
from launcher.ray.wire import Hints, decode_replies, encode_hints

_GRACE_S = 1.0  # for an engine to say itself that a request's time is over, or to be known to have died

Send = Callable[[bytes, list[bytes], bool, bytes], AsyncGenerator[bytes, None]]


class ReplicaLostError(Exception):
    """The engine that a request was sent to has died, or cannot be reached."""


class Replay:
    """Sends requests by `send`, each again to another engine where that is what helps.

    send: calls an engine's `draw` with a header, files, whether progress is of use, and hints, and yields its chunks;
    raises `ReplicaLostError`. usual: the model's defaults. clock: gives seconds. `counts`: what this has done, for
    metrics.
    """

    def __init__(self, send: Send, fleet: Fleet, usual: Usual, clock: Callable[[], float] = time.monotonic) -> None:
        self._send, self._fleet, self._usual, self._clock = send, fleet, usual, clock
        self.counts = Counts()
        self._holding = Holding()
        self._driving: set[asyncio.Task[None]] = set()

    async def replies(
        self, request: Generate, files: Mapping[str, bytes] = NO_FILES, *, progress: bool = True
    ) -> AsyncGenerator[tuple[Reply, bytes], None]:
        """Yield what becomes of a request: `Accepted`, again whenever it starts over or its place changes, `Progress`
        where that is of use, `Preview`, and each `Image` once, with the file behind each, until the last image.

        Raises the error of `engine.errors` that ends the request. Closing this cancels it. files: of its pictures, by
        their names; they are held until no other engine can need them. Who reads slowly misses progress and previews.
        """
        names = tuple(name for name in PICTURES if name in files)
        request = with_seed(msgspec.structs.replace(request, pictures=names))
        encode_request(request)  # before anybody is asked: raises for what cannot be sent
        work = work_of(request, self._usual)
        course = _Course(self._send, self._fleet, self.counts, request, work, progress, self._clock)
        course.files = self._holding.hold([files[name] for name in names])
        del files
        unsubscribe = self._fleet.on_leaving(course.left)
        driving = asyncio.create_task(course.drive())
        self._driving.add(driving)
        driving.add_done_callback(self._driving.discard)
        try:
            while (told := await course.telling.unread.next()) is not None:
                yield told
        except Krea2Error as error:
            self.counts.failed(error.code)
            raise
        finally:
            unsubscribe()
            course.files.forget()
            if not course.telling.has_ended:  # or else its engine takes leave by itself
                await end(driving)

    def end(self) -> None:
        """Fail all requests, since the server is stopped. Those that come later are taken."""
        for driving in self._driving:
            asyncio.get_running_loop().call_soon(driving.cancel)  # once it has begun, or else it would say nothing


class _Course:
    """One request, from its first attempt to its end."""

    files: Held

    def __init__(
        self,
        send: Send,
        fleet: Fleet,
        counts: Counts,
        request: Generate,
        work: float,
        progress: bool,
        clock: Callable[[], float],
    ) -> None:
        self._send, self._fleet, self._counts = send, fleet, counts
        self._request, self._work, self._progress = request, work, progress
        self._time, self._clock = OwnTime(request, clock), clock
        self._history = History(request.request_id)
        self.telling = Telling(request, self._history, progress, clock)
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self._loop.create_future()

    def left(self, names: Collection[str]) -> None:
        """Hear, in any thread, that engines take no more requests."""
        with suppress(RuntimeError):  # the loop is closed, and nobody there any more
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)

    async def drive(self) -> None:
        """Make attempts until the request has ended."""
        error: Krea2Error | None = None
        try:
            while (pause_s := await self._try_once()) is not None:
                await self._pause(pause_s)
        except Exception as failure:
            error = as_krea2_error(failure)
            is_late = isinstance(error, RequestTimeoutError) or (is_too_short(error) and self._time.was_less)
            if is_late and self._request.timeout_s is not None:
                error = RequestTimeoutError.of(self._request.timeout_s)  # an engine knows only what was left of it
        except asyncio.CancelledError:
            error = ServerError("the server was stopped")  # of which a client that hung up hears nothing
        finally:
            self.files.forget()
        self.telling.end(error)

    async def _try_once(self) -> float | None:
        """Make an attempt. Returns None at the end, or else the seconds to wait before the next one."""
        attempt = self._history.begin()
        self.telling.attempt_begins()
        problem: LostError | MovedError | Krea2Error
        try:
            await self._follow(attempt)
            return None
        except (LostError, MovedError, Krea2Error) as caught:
            problem = caught
        finally:
            attempt.name = attempt.name or self._fleet.where(attempt.ticket)
            self._fleet.ended(attempt.ticket)
        return None if self.telling.is_complete else self._after(attempt, problem)

    def _after(self, attempt: Attempt, problem: LostError | MovedError | Krea2Error) -> float:
        """Decide what comes after an attempt, count it and log it. Returns the seconds to wait, or raises the end."""
        restarts = self._history.restarts
        match problem:
            case MovedError():
                reason, detail = problem.reason, None
                pause_s = self._history.moved(attempt)
            case LostError():
                reason, detail = problem.reason, problem.detail
                pause_s = self._history.lost(attempt, problem)
            case _:
                reason, detail = problem.code, problem.message
                pause_s = self._history.failed(attempt, problem)
        if self._history.restarts > restarts:
            self.telling.attempt_dies()
        if isinstance(problem, MovedError):
            self._counts.moved(reason)
        else:
            self._counts.replayed(reason)
        log_event(
            "request sent to another engine",
            level="info" if isinstance(problem, MovedError) else "warning",
            request_id=self._request.request_id,
            reason=reason,
            message=detail,
            replica=attempt.name,
            begun=attempt.begun,
            deaths=self._history.deaths,
        )
        return pause_s

    async def _follow(self, attempt: Attempt) -> None:
        """Follow an attempt to its end. Raises what ends it otherwise."""
        silence = Silence(self._clock)
        reading = asyncio.create_task(self._read(attempt, silence))
        try:
            while not reading.done():
                wait_s = self._look(attempt, silence)
                self._woken = self._loop.create_future()
                await asyncio.wait((reading, self._woken), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if reading.cancelled():
                raise LostError("replica_lost", "its answer was cancelled")
            reading.result()
        finally:
            await end(reading)

    def _look(self, attempt: Attempt, silence: Silence) -> float:
        """Look after an attempt. Returns the seconds until that is to be done again, or raises what ends it."""
        now = self._time.clock()
        name = attempt.name = self._fleet.where(attempt.ticket) or attempt.name  # which it forgets in an hour
        leaves = name is not None and not self._fleet.takes(name)
        # Serve's router keeps a request whose engine turns out to be dead, until there is another.
        is_sent = attempt.heard or (name is not None and not (leaves and self._fleet.backlog_s is None))
        self._time.check(_GRACE_S if is_sent else 0.0)
        if not is_sent:
            silence.heard()
            self._wait_on(now)
            return TICK_S
        self._history.sent(now)
        try:
            hangs_in_s = silence.look()
        except LostError:
            self._fleet.hangs(attempt.name)
            raise
        if leaves and not attempt.begun and self._fleet.backlog_s is not None:  # there are others
            attempt.leaves_since = now if attempt.leaves_since is None else attempt.leaves_since
            if attempt.accepted or now - attempt.leaves_since >= _GRACE_S:
                raise MovedError("stopped")
        return TICK_S if leaves or not attempt.accepted or self._time.is_limited else hangs_in_s

    async def _read(self, attempt: Attempt, silence: Silence) -> None:
        request = self._request
        avoid = tuple(self._history.avoid)
        hints = Hints(ticket=attempt.ticket, avoid=avoid, key=routing_key(request), work=self._work)
        timeout_s = self._time.for_attempt()
        header = encode_request(msgspec.structs.replace(request, request_id=attempt.ticket, timeout_s=timeout_s))
        try:
            chunks = self._send(header, [*self.files.files], self._progress, encode_hints(hints))
            async with aclosing(chunks):
                async for chunk in chunks:
                    attempt.heard = True
                    silence.heard()
                    if self._hear(attempt, chunk):
                        self.telling.end()
                        self._fleet.ended(attempt.ticket)
                        if len(attempt.images) == request.num_images:
                            await drain(chunks)
                        return
        except ReplicaLostError as error:
            raise LostError("replica_lost", str(error) or "it died") from None
        except (LostError, MovedError, Krea2Error):
            raise
        except Exception as error:
            log_exception(error, request_id=request.request_id)
            raise LostError("replica_lost", describe(error)) from None
        raise LostError("bad_reply", "its answer had no end")

    def _hear(self, attempt: Attempt, chunk: bytes) -> bool:
        """Take in what an engine says. Returns whether nothing is missing any more."""
        try:
            replies = decode_replies(chunk)
        except (ValueError, RecursionError) as error:  # msgspec's own among them
            raise LostError("bad_reply", f"a reply of it cannot be read: {describe(error)}") from None
        was_accepted, others_before = attempt.accepted, 0
        for reply, file in replies:
            has_all = self.telling.hear(attempt, reply, file)
            if self.telling.is_complete:
                self.files.forget()
            if has_all:
                return True
            if isinstance(reply, Accepted):
                self._fleet.accepted(attempt.ticket, reply.estimated_s)
                others_before = reply.position
        if others_before and not was_accepted and not attempt.begun and self._waits_less_elsewhere(attempt.ticket):
            raise MovedError("busy")
        return False

    def _waits_less_elsewhere(self, ticket: str) -> bool:
        """Whether it is worth the way, which it is once at most: what is known of other engines may be old. Requests
        with an idempotency key stay with the one that their key belongs to, and those with pictures where they are:
        their size, by which one that only takes long is told from one that waits, is not known here."""
        may_go = self._history.is_first and self._request.idempotency_key is None and not self._request.pictures
        return may_go and self._fleet.waits_less_elsewhere(ticket)

    # ---- while no engine has it

    def _wait_on(self, now: float) -> None:
        missing = self._fleet.backlog_s is None
        problem = "all engines are starting or being stopped" if missing else "no engine has room for the request"
        self._history.homeless(now, problem)

    async def _pause(self, seconds: float) -> None:
        until = self._time.clock() + seconds
        while True:
            now = self._time.clock()
            self._time.check()
            self._wait_on(now)
            if now >= until:
                return
            await asyncio.sleep(min(TICK_S, until - now))
