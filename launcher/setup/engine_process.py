"""The process of an engine that this program starts: a front-end, which starts its ranks."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from queue import Empty, SimpleQueue

import msgspec

from engine.errors import Krea2Error, LaunchError, RankError, ServerError, error_from_code
from launcher.awake import AwakeClock
from launcher.frontend.process import with_run_folder
from launcher.messages.configs import Ended, FrontendConfig, Started, Starting, decode_frontend_report
from launcher.messages.own_clients import new_name
from launcher.processes import ORDERLY_S, Child, stop_all

OnLoading = Callable[[int, int, str], None]


def in_silence(done: int, total: int, what: str) -> None:
    """Tell nobody how far an engine is."""


class EngineProcess:
    """Starts an engine, at `address` then, and stops it: what it takes for that is `stopping`, to be added to.

    Thread-safe. A process that was forked from the one that started it stops nothing.
    """

    def __init__(self, config: FrontendConfig) -> None:
        self.config = msgspec.structs.replace(config, client_name=new_name())
        self.address = ""
        self.stopping = ExitStack()
        self._process = os.getpid()
        self._lock = threading.RLock()  # whoever stops it waits for another who does
        self._child: Child | None = None
        # Of the front-end, None when it has ended; a `LaunchError` from whoever gives up.
        self._reports: SimpleQueue[Starting | Started | Ended | LaunchError | None] = SimpleQueue()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Start the front-end's process, and stop it if what is done meanwhile raises. Raises `LaunchError`."""
        self.config, folder = with_run_folder(self.config)
        self.stopping.callback(folder.remove)
        with ExitStack() as if_it_fails:
            if_it_fails.callback(self.close)
            # What is never closed is closed here: later, threads no longer run.
            atexit.register(self.close)
            self.stopping.callback(atexit.unregister, self.close)
            reports = self._reports
            try:
                child = Child(
                    "_frontend", self.config, on_report=lambda data: reports.put(decode_frontend_report(data))
                )
            except OSError as error:
                raise LaunchError(f"the front-end cannot be started: {error.strerror or error}") from None
            child.on_exit(lambda: reports.put(None))
            self.stopping.callback(stop_all, [child], patience_s=ORDERLY_S)
            self._child = child
            with self.explaining():
                yield
            if_it_fails.pop_all()

    def wait_until_started(self, on_loading: OnLoading) -> None:
        """Wait for its address for clients. Raises what the front-end ended with. on_loading: see `launch_frontend`."""
        assert self._child is not None

        def has_report(seconds: float) -> bool:
            with suppress(Empty):
                report = self._reports.get(timeout=seconds)
                if isinstance(report, Starting):
                    on_loading(report.stage.done, report.stage.total, report.stage.name)
                else:
                    heard.append(report)
            return bool(heard)

        heard: list[Started | Ended | LaunchError | None] = []
        timeout_s = self.config.start_timeout_s + ORDERLY_S
        if not AwakeClock().wait(has_report, timeout_s):
            raise LaunchError(f"the front-end was not ready within {timeout_s:g} s")
        (report,) = heard
        if isinstance(report, LaunchError):
            raise report
        if not isinstance(report, Started):
            self._child.wait(ORDERLY_S)
            raise _error_of(self._child, report)
        self.address = report.address

    def give_up(self) -> None:
        """Let whoever waits until it has started stop it, and raise `LaunchError`."""
        self._reports.put(LaunchError("the start was cancelled"))

    def on_end(self, callback: Callable[[Krea2Error], None]) -> None:
        """Call back, in another thread or at once, when the front-end has ended: to be asked for once."""
        child, reports = self._child, self._reports
        assert child is not None
        child.on_exit(lambda: callback(_error_of(child, reports.get())))

    def explain(self, error: BaseException) -> None:
        """Add the engine's last output to an error that it may explain."""
        tail = () if self._child is None else self._child.tail
        if tail and isinstance(error, LaunchError | RankError | ServerError) and not hasattr(error, "__notes__"):
            error.add_note("The engine's last output:\n" + "\n".join(tail))

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Explain errors."""
        try:
            yield
        except Krea2Error as error:
            self.explain(error)
            raise

    def close(self) -> None:
        """Stop it, within seconds; doing so again does nothing."""
        if os.getpid() == self._process:
            with self._lock:
                self.stopping.close()


def _error_of(child: Child, report: object) -> Krea2Error:
    """Make the error that a front-end has ended with."""
    if isinstance(report, Ended):
        return error_from_code(report.code, report.message, report.parameter)
    return ServerError(f"the front-end {child.describe_exit()}")
