"""Has the prompts and pictures of a server checked by one filter, in processes that are replaced when they fail."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.filters.child import CheckFailedError, FilterProcess
from launcher.filters.exchange import METHODS, Method
from launcher.filters.protocol import Picture, Prompt, Scores
from launcher.filters.spec import call_timeout_s
from launcher.filters.verdicts import DEFAULT_THRESHOLDS
from launcher.logs import log_event, log_exception
from launcher.messages.configs import FilterSpec
from launcher.processes import TERMINATE_S

BATCH = 8
_BATCH_BYTES = 2**27  # of a batch's pictures, unless one alone has more
_MOST_WAITING = 4096
_LEAST_PATIENCE_S = 1.0  # for a check that is tried again
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0  # before a process is started again that could not be, or did nothing
_SHUT = "the server is shutting down"


@dataclass(eq=False)
class _Check:
    """A prompt or picture, by when it is to be done, in the loop's time, and how often a process has failed over it."""

    method: Method
    item: Prompt | Picture
    deadline: float
    answer: asyncio.Future[Any]
    failures: int = 0


@dataclass
class _Queue:
    """What waits. again: for a second try, each alone, since any of a batch may have been why it failed. later:
    previews, for which nobody waits as for an image."""

    again: deque[_Check] = field(default_factory=deque)
    soon: deque[_Check] = field(default_factory=deque)
    later: deque[_Check] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.again) + len(self.soon) + len(self.later)

    def take(self, most: int) -> list[_Check]:
        """Take what is to be checked next: of one method, without what nobody waits for any more."""
        for queue in (self.again, self.soon, self.later):
            while queue and queue[0].answer.done():
                queue.popleft()
        if self.again:
            return [self.again.popleft()]
        queue = self.soon or self.later
        batch: list[_Check] = []
        size = 0
        while queue and len(batch) < most:
            check = queue[0]
            size += len(check.item.rgb) if isinstance(check.item, Picture) else 0
            if batch and (check.method != batch[0].method or size > _BATCH_BYTES):
                break
            queue.popleft()
            if not check.answer.done():
                batch.append(check)
        return batch

    def fail(self, error: CheckFailedError) -> None:
        """Fail all that wait."""
        for queue in (self.again, self.soon, self.later):
            while queue:
                _fail(queue.popleft(), error)


class Workers:
    """The processes of one filter. A check that fails is tried once more, alone; half of its time is for the first try.

    methods and thresholds are known once it has started. retry_after_s: when a check may work that fails now.
    """

    def __init__(self, spec: FilterSpec) -> None:
        self.spec = spec
        self.methods: tuple[Method, ...] = METHODS
        self.thresholds: dict[str, float] = DEFAULT_THRESHOLDS
        self.retry_after_s = 1.0
        self._queue = _Queue()
        self._wakes: set[asyncio.Event] = set()
        self._processes: set[FilterProcess] = set()
        self._up = 0  # processes
        self._problem: str | None = None  # why a process could not be started again, the last time
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def not_ready(self) -> str | None:
        """Why nothing can be checked now, None if it can."""
        if self._up:
            return None
        return f"content filter {self.spec.label} is {'starting' if self._problem is None else 'down'}"

    async def start(self) -> None:
        """Start all processes. Raises `CheckFailedError` if one cannot be."""
        starts = [asyncio.create_task(self._start_one()) for _ in range(self.spec.workers)]
        try:
            processes = await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            for process in [*self._processes]:
                self._end(process)
            self.close()
            raise
        self._tasks = [asyncio.create_task(self._work_on(process)) for process in processes]

    async def check(self, method: Method, item: Prompt | Picture, *, later: bool = False) -> Any:
        """Have something checked or marked: returns `Scores`, or the rgb with its mark. Raises `CheckFailedError`.

        later: let everything else go first.
        """
        if self._closed:
            raise CheckFailedError("start", _SHUT)
        if self._up == 0 and self._problem is not None:
            raise CheckFailedError("start", self._problem)
        if len(self._queue) >= _MOST_WAITING:
            raise CheckFailedError("full", f"{len(self._queue)} checks wait")
        loop = asyncio.get_running_loop()
        check = _Check(method, item, loop.time() + self.spec.timeout_s, loop.create_future())
        (self._queue.later if later else self._queue.soon).append(check)
        self._wake()
        try:
            async with asyncio.timeout_at(check.deadline):
                return await check.answer
        except TimeoutError:
            raise CheckFailedError("late", f"it was not done within {self.spec.timeout_s:g} s") from None

    def close(self) -> None:
        """End all processes, and fail what waits."""
        for task in self._tasks:
            task.cancel()
        for process in self._processes:
            process.kill()  # its worker closes the socket, which it may be reading
        for process in self._processes:
            process.child.wait(TERMINATE_S)
        self._closed = True
        self._queue.fail(CheckFailedError("start", _SHUT))

    async def _start_one(self) -> FilterProcess:
        process = FilterProcess(self.spec, self._wake)
        self._processes.add(process)
        try:
            up = await process.come_up()
        except BaseException:
            self._end(process)
            raise
        self.methods = up.methods
        self.thresholds = DEFAULT_THRESHOLDS if up.thresholds is None else up.thresholds
        return process

    def _end(self, process: FilterProcess) -> None:
        process.end()
        self._processes.discard(process)

    async def _work_on(self, process: FilterProcess) -> None:
        """Be one of the workers: with this process, and those that replace it."""
        pause_s = _FIRST_PAUSE_S
        while True:
            self._up += 1
            self._problem, self.retry_after_s = None, 1.0
            was_asked = True
            try:
                was_asked = await self._use(process)
            except Exception as error:
                log_exception(error, filter=self.spec.label)
            finally:
                self._up -= 1
                self._end(process)
            if was_asked:
                pause_s = _FIRST_PAUSE_S
            while True:
                if not was_asked:  # one that comes up and ends, again and again, keeps no core busy
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                try:
                    process = await self._start_one()
                    break
                except CheckFailedError as error:
                    log_event("filter not started", level="error", filter=self.spec.label, reason=str(error))
                    self._problem, self.retry_after_s = str(error), pause_s
                    was_asked = False
                    if self._up == 0:
                        self._queue.fail(error)

    async def _use(self, process: FilterProcess) -> bool:
        """Have a process check what comes, until it fails. Returns whether there was anything."""
        wake = asyncio.Event()
        was_asked = False
        self._wakes.add(wake)
        try:
            while True:
                wake.clear()
                if process.has_ended:
                    log_event(
                        "filter lost", level="error", filter=self.spec.label, reason=process.child.describe_exit()
                    )
                    return was_asked
                batch = self._queue.take(self.spec.batch or BATCH)
                if not batch:
                    await wake.wait()
                    continue
                was_asked = True
                if not await self._ask(process, batch):
                    return was_asked
        finally:
            self._wakes.discard(wake)

    async def _ask(self, process: FilterProcess, batch: Sequence[_Check]) -> bool:
        """Have a batch checked. Returns whether the process can go on."""
        answers: Sequence[Scores] | Sequence[bytes]
        try:
            answers = await process.ask(batch[0].method, [check.item for check in batch], self._patience_s(batch))
        except CheckFailedError as error:
            self._try_again(batch, error)
            kept = error.keeps_process
            log_event(
                "filter unavailable" if kept else "filter lost",
                level="error",
                filter=self.spec.label,
                reason=str(error)[:500],
                checks=len(batch),
            )
            return kept
        except BaseException:  # the server is shutting down
            for check in batch:
                _fail(check, CheckFailedError("start", _SHUT))
            raise
        for check, answer in zip(batch, answers, strict=True):
            if not check.answer.done():
                check.answer.set_result(answer)
        return True

    def _patience_s(self, batch: Sequence[_Check]) -> float:
        """How long the process may take: half of what a check has, or of what is left to those that are tried again
        each one's share, since one of them may be why the first try took too long."""
        most = call_timeout_s(self.spec)
        (first, *_) = batch
        if not first.failures:
            return most
        left = first.deadline - asyncio.get_running_loop().time()
        share = left / (1 + len(self._queue.again))
        return min(most, max(share, min(most, _LEAST_PATIENCE_S)))

    def _try_again(self, batch: Sequence[_Check], error: CheckFailedError) -> None:
        for check in batch:
            check.failures += 1
            if check.failures > 1:
                _fail(check, error)
            else:
                self._queue.again.append(check)
        self._wake()

    def _wake(self) -> None:
        for wake in self._wakes:
            wake.set()


def _fail(check: _Check, error: CheckFailedError) -> None:
    if not check.answer.done():
        check.answer.set_exception(error)
