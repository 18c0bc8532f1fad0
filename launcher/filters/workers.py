"""Has the prompts and pictures of a server checked by one filter, in processes that are replaced when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from launcher.filters.child import CheckFailedError, FilterProcess
from launcher.filters.exchange import METHODS, Method
from launcher.filters.protocol import Picture, Prompt, Scores
from launcher.filters.spec import call_timeout_s
from launcher.filters.verdicts import DEFAULT_THRESHOLDS
from launcher.filters.waiting import BatchSizes, Check, Waiting, fail_check
from launcher.logs import log_event, log_exception
from launcher.messages.configs import FilterSpec
from launcher.messages.encoding import describe
from launcher.processes import TERMINATE_S

BATCH = 8
_LEAST_PATIENCE_S = 1.0  # for a check that is tried again
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0  # before a process is started again that could not be, or did nothing
_SHUT = "the server is shutting down"


class Workers:
    """The processes of one filter. A check that fails is tried once more, alone; half of its time is for the first try.

    methods and thresholds are known once it has started. retry_after_s: when a check may work that fails now.
    """

    def __init__(self, spec: FilterSpec) -> None:
        self.spec = spec
        self.methods: tuple[Method, ...] = METHODS
        self.thresholds: dict[str, float] = DEFAULT_THRESHOLDS
        self.retry_after_s = 1.0
        self._queue = Waiting()
        self._batches = BatchSizes(spec.batch or BATCH, call_timeout_s(spec))
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

    async def check(self, method: Method, item: Prompt | Picture) -> Any:
        """Have something checked or marked: returns `Scores`, or the rgb with its mark. Raises `CheckFailedError`."""
        if self._closed:
            raise CheckFailedError("start", _SHUT)
        if self._up == 0 and self._problem is not None:
            raise CheckFailedError("start", self._problem)
        if self._queue.is_full_for(item):
            raise CheckFailedError("full", f"{len(self._queue)} checks wait")
        loop = asyncio.get_running_loop()
        check = Check(method, item, loop.time() + self.spec.timeout_s, loop.create_future())
        self._queue.add(check)
        self._wake()
        try:
            async with asyncio.timeout_at(check.deadline):
                return await check.answer
        except TimeoutError:
            raise CheckFailedError("late", f"it was not done within {self.spec.timeout_s:g} s") from None
        finally:
            if check.answer.cancelled():
                self._queue.drop(check)

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
                except Exception as error:
                    failed = _why_not_started(error)
                    log_event("filter not started", level="error", filter=self.spec.label, reason=str(failed))
                    self._problem, self.retry_after_s = str(failed), pause_s
                    was_asked = False
                    if self._up == 0:
                        self._queue.fail(failed)

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
                batch = self._queue.take(self._batches.most)
                if not batch:
                    await wake.wait()
                    continue
                was_asked = True
                if not await self._ask(process, batch):
                    return was_asked
        finally:
            self._wakes.discard(wake)

    async def _ask(self, process: FilterProcess, batch: Sequence[Check]) -> bool:
        """Have a batch checked. Returns whether the process can go on."""
        answers: Sequence[Scores] | Sequence[bytes]
        method, loop = batch[0].method, asyncio.get_running_loop()
        began = loop.time()
        try:
            answers = await process.ask(method, [check.item for check in batch], self._patience_s(batch))
        except CheckFailedError as error:
            if error.reason == "late":
                self._batches.was_late(method, len(batch))
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
                fail_check(check, CheckFailedError("start", _SHUT))
            raise
        self._batches.took(method, len(batch), loop.time() - began)
        for check, answer in zip(batch, answers, strict=True):
            if not check.answer.done():
                check.answer.set_result(answer)
        return True

    def _patience_s(self, batch: Sequence[Check]) -> float:
        """How long the process may take: half of what a check has, or of what is left to one that is tried again its
        share beside what waits, since it may be why the first try took too long."""
        most = call_timeout_s(self.spec)
        (first, *_) = batch
        if not first.failures:
            return most
        left = first.deadline - asyncio.get_running_loop().time()
        share = left / (1 + self._queue.turns(self._batches.most(first.method)))
        return min(most, max(share, min(most, _LEAST_PATIENCE_S)))

    def _try_again(self, batch: Sequence[Check], error: CheckFailedError) -> None:
        for check in batch:
            check.failures += 1
            if check.failures > 1:
                fail_check(check, error)
            elif not check.answer.done():
                self._queue.again.append(check)
        self._wake()

    def _wake(self) -> None:
        for wake in self._wakes:
            wake.set()


def _why_not_started(problem: Exception) -> CheckFailedError:
    """Say why there is no process: also where no files, threads or memory are left for one, as there may be later."""
    if isinstance(problem, CheckFailedError):
        return problem
    return CheckFailedError("start", f"no process can be started: {describe(problem)}")
