"""An HTTP process as its parent sees it: started, watched, and started again when it dies or hangs."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from launcher.awake import TICK_S, AwakeClock
from launcher.logs import log_event, log_exception
from launcher.messages.api_keys import ApiKey
from launcher.messages.configs import Beat, HttpConfig
from launcher.messages.own_clients import OwnClients
from launcher.processes import Child, Reporter
from launcher.threads import in_own_thread

BEAT_S = 1.0  # between beats of a process, which its event loop sends
# Without a beat a process hangs. Beside twenty processes that computed on two cores, beats came 0.1 s late at most, and
# the imports before the first took 38 s.
SILENT_S = 10.0
_FIRST_BEAT_S = 180.0
_PAUSE_S = 0.1  # before a process is started again, twice as long each time
_LONGEST_PAUSE_S = 10.0
_SETTLED_S = 30.0  # after which a process that is lost counts as the first


class HttpWorker:
    """Runs an HTTP process, and another when that is lost, in a thread until `stopping` is set.

    own_clients: what the front-end is to know the processes by.
    """

    def __init__(self, config: HttpConfig, own_clients: OwnClients, stopping: threading.Event) -> None:
        self._config, self._own_clients, self._stopping = config, own_clients, stopping
        self._child: Child | None = None
        self._lock = threading.Lock()  # around its start, so that whoever stops it knows of it
        threading.Thread(target=self._keep, daemon=True).start()

    def child(self) -> list[Child]:
        """Return the process, if there is one; once `stopping` is set, no other comes."""
        with self._lock:
            return [self._child] if self._child is not None else []

    def renew_keys(self, file_keys: tuple[ApiKey, ...]) -> None:
        """Have the process read its file of keys again; another that replaces it gets these."""
        with self._lock:
            self._config = msgspec.structs.replace(self._config, file_keys=file_keys)
            if self._child is not None:
                self._child.send_signal(signal.SIGHUP)

    def _keep(self) -> None:
        pause_s = _PAUSE_S
        while not self._stopping.is_set():
            began, name = time.monotonic(), self._own_clients.add()
            reason = problem = None
            try:
                reason = self._run(name)
            except OSError as error:
                problem = str(error)
            self._own_clients.end(name)
            if self._stopping.is_set():
                return
            if time.monotonic() - began > _SETTLED_S:
                pause_s = _PAUSE_S
            worker = self._config.worker
            if problem is None:
                log_event("http process lost", level="error", reason=reason, restart_in_s=pause_s, worker=worker)
            else:
                log_event(
                    "http process cannot be started", level="error", reason=problem, restart_in_s=pause_s, worker=worker
                )
            self._stopping.wait(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    def _run(self, name: bytes) -> str:
        """Run a process to its end, which comes soon if it hangs. Returns why it ended."""
        beaten = threading.Event()
        with self._lock, _hangups_wait():
            if self._stopping.is_set():
                return ""
            config = msgspec.structs.replace(self._config, client_name=name)
            self._child = child = Child(
                "_http",
                config,
                echo="http" if config.worker is None else f"http {config.worker}",
                has_log=True,
                on_report=lambda _: beaten.set(),
                pass_fds=(config.socket_fd,),
            )
        clock = AwakeClock()  # which stands still when this process was stopped, as all may have been
        silent_s, hung = _FIRST_BEAT_S, ""
        due = clock() + silent_s
        while not child.wait(TICK_S):
            now = clock()
            if beaten.is_set():
                beaten.clear()
                silent_s = SILENT_S
                due = now + silent_s
            elif now >= due and not hung and not self._stopping.is_set():
                hung = f"its event loop had not run for {silent_s:g} s, so it was killed"
                child.send_signal(signal.SIGKILL)  # a stopped process obeys no other signal
        return hung or child.describe_exit()


@contextmanager
def _hangups_wait() -> Iterator[None]:
    """Let SIGHUP wait in processes that are started meanwhile, until they can handle it, in place of ending them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def read_at_hangups(read_keys: Callable[[], None]) -> None:
    """Have keys read in a thread at each SIGHUP, also one that has come since the start of this process, until
    cancelled. While a reading lasts no other begins."""
    hung_up = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    while await hung_up.wait():
        hung_up.clear()
        try:
            await in_own_thread(read_keys)
        except Exception as error:  # our own mistake, which must not cost the next time
            log_exception(error)


async def beat(parent: Reporter) -> None:
    """Tell the parent again and again that this process' event loop runs, until cancelled."""
    while True:
        with suppress(BlockingIOError):  # the parent itself does not run
            parent.send(Beat())
        await asyncio.sleep(BEAT_S)
