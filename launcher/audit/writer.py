"""Has lines written by a thread, since a disk may be slow, or hang."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue

from engine.errors import ServerError
from launcher.audit.log import AuditLog
from launcher.logs import log_event

WAIT_S = 10.0  # for a line to be written
_MOST_WAITING = 10_000  # lines
_RETRY_S = 5.0


class AuditWriter:
    """Writes lines in the order in which they are given.

    log: what is written to. wait_s: how long anybody waits for a line. The thread keeps no process from ending.
    """

    def __init__(self, log: AuditLog, *, wait_s: float = WAIT_S) -> None:
        self._log, self._wait_s = log, wait_s
        self._queue: SimpleQueue[tuple[bytes, Future[None]] | None] = SimpleQueue()
        self._waiting = self._overdue = 0
        self._failing = False
        threading.Thread(target=self._run, name="audit log", daemon=True).start()

    async def write(self, line: bytes) -> None:
        """Return once a line is written. Raises `ServerError` if it is not, or not in time: then it may still be."""
        if self._overdue:  # the thread waits for the disk, and so would this
            raise self._unwritten("the disk does not answer")
        if self._waiting >= _MOST_WAITING:
            raise self._unwritten("too many lines wait")
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # so that nobody who stops waiting can cancel it
        self._waiting += 1
        self._queue.put((line, done))
        waits = asyncio.wrap_future(done)
        waits.add_done_callback(self._is_done)
        try:
            await asyncio.wait_for(asyncio.shield(waits), self._wait_s)
        except TimeoutError:
            self._overdue += 1
            waits.add_done_callback(self._is_no_longer_overdue)
            raise self._unwritten(f"the disk took longer than {self._wait_s:g} s") from None
        except OSError as error:
            raise self._unwritten(error.strerror or str(error)) from None
        if self._failing:
            log_event("audit log written again", file=self._log.path)
            self._failing = False

    def close(self) -> None:
        """Write no more than what waits."""
        self._queue.put(None)

    def _is_done(self, waits: asyncio.Future[None]) -> None:
        self._waiting -= 1
        if not waits.cancelled():
            waits.exception()  # whoever waits hears of it

    def _is_no_longer_overdue(self, _: asyncio.Future[None]) -> None:
        self._overdue -= 1

    def _unwritten(self, reason: str) -> ServerError:
        if not self._failing:  # once, and not for each of the requests that it fails
            log_event("audit log not written", level="error", file=self._log.path, reason=reason)
        self._failing = True
        return ServerError("the audit log cannot be written, and nothing leaves without it", retry_after_s=_RETRY_S)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            line, done = work
            try:
                self._log.append(line)
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)
        with suppress(OSError):
            self._log.close()
