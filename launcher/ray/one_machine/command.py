"""The command's side of a cluster on one machine: it has a process that keeps the Ray, and ends it with itself."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

import msgspec

from engine.errors import LaunchError, ServerError, error_from_code
from launcher.awake import AwakeClock
from launcher.http.server_process import listen
from launcher.logs import log_event, log_output
from launcher.messages.configs import Ended, Starting
from launcher.messages.message_parts import Stage
from launcher.processes import SIGNALS, TERMINATE_S, Child
from launcher.ray.one_machine.descendants import adopt_orphans, end_descendants
from launcher.ray.one_machine.keeper import END_S, HURRY
from launcher.ray.one_machine.messages import (
    ClusterConfig,
    CutOff,
    NotStarted,
    OpenPort,
    Output,
    Serving,
    decode_report,
)
from launcher.run_folder import RunFolder

_POLL_S = 0.2
_TRIES = 3
_HURRY_S = 10.0  # for clients to be answered after a second signal
# A path of one of Ray's sockets may have 107 characters, of which it takes 64 for itself, and the folder's name 18.
_LONGEST_PARENT = 24


class Reserved(NamedTuple):
    """A port that nobody else takes, and where browsers find it."""

    port: int
    url: str


@contextmanager
def reserve(host: str, port: int) -> Iterator[Reserved]:
    """Keep a port, 0 for a free one, for Serve's proxy, which listens there much later, and also when it is started
    again. Raises what `listen` does."""
    with listen(host, port) as listening:
        family, address = listening.family, listening.getsockname()
    with socket.socket(family, socket.SOCK_STREAM) as kept:
        # Those that say so share a port, of one user, as Serve's proxies do; who does not listen gets no connections.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with suppress(OSError):  # connections of a server before us are not quite over, which keeps none from listening
            kept.bind(address)
        yield Reserved(address[1], f"http://{f'[{host}]' if ':' in host else host}:{address[1]}")


class _Again(Exception):
    """Ray was slow to start, and may yet."""


_Report = Starting | Serving | NotStarted | CutOff | Ended | None  # None: the keeper's process has ended


class Cluster:
    """A cluster on this machine, with what is told of it as it goes.

    api_keys: of HTTP clients, which go to the ingress in its environment. log_format: of this process' log, which has
    what replicas log, too. on_stage: called with how far it is, on_serving once it serves, with what Ray has open on
    every interface, on_draining when it is to stop, and something may run.
    """

    def __init__(
        self,
        config: ClusterConfig,
        *,
        api_keys: Sequence[str] = (),
        log_format: str = "json",
        on_stage: Callable[[Stage], None],
        on_serving: Callable[[Sequence[OpenPort]], None],
        on_draining: Callable[[], None],
    ) -> None:
        self._config, self._log_format = config, log_format
        self._environment = {"KREA2_API_KEY": " ".join(api_keys)} if api_keys else {}
        self._on_stage, self._on_serving, self._on_draining = on_stage, on_serving, on_draining
        self._signals: SimpleQueue[signal.Signals] = SimpleQueue()

    def run(self) -> signal.Signals | None:
        """Serve until SIGINT, SIGTERM or SIGHUP; a second one does not wait for what runs, nor a third for its clients
        to hear of that. Returns the first.

        No process and no file is left when this returns or raises; raises what a replica, or Ray, failed with.
        """
        for number in SIGNALS:
            signal.signal(number, lambda number, _: self._signals.put(signal.Signals(number)))
        adopt_orphans()  # those of a keeper that was killed
        tries = 0
        try:
            while True:
                tries += 1
                try:
                    return self._run_once()
                except _Again as slow:
                    if tries == _TRIES:
                        raise LaunchError(str(slow)) from None
                    log_event("Ray is started again", level="warning", because=str(slow))
        finally:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def _run_once(self) -> signal.Signals | None:
        folder = RunFolder.make(longest_parent=_LONGEST_PARENT)
        keeper = None
        reports: SimpleQueue[_Report] = SimpleQueue()

        def take(data: bytes) -> None:
            report = decode_report(data)
            if isinstance(report, Output):
                self._log(report)
            else:
                reports.put(report)

        try:
            config = msgspec.structs.replace(self._config, folder=folder.path)
            keeper = Child("_cluster", config, environment=self._environment, on_report=take)
            keeper.on_exit(lambda: reports.put(None))
            return self._follow(keeper, reports)
        except OSError as error:
            raise LaunchError(f"Ray's process cannot be started: {error.strerror or error}") from None
        finally:
            if keeper is not None:
                _end(keeper)
            folder.remove()

    def _follow(self, keeper: Child, reports: SimpleQueue[_Report]) -> signal.Signals | None:
        """Follow it from its start to its end."""
        received: signal.Signals | None = None
        serves = False
        stage: Stage | None = None
        hurried: float | None = None
        while True:
            with suppress(Empty):
                number = self._signals.get_nowait()
                if hurried is not None or not serves:
                    return received or number
                if received is None:
                    received = number
                    if self._config.drain_s:
                        self._on_draining()
                    keeper.ask_to_stop()
                else:
                    hurried = time.monotonic()
                    keeper.send_signal(HURRY)
            if hurried is not None and time.monotonic() >= hurried + _HURRY_S:
                return received
            try:
                report = reports.get(timeout=_POLL_S)
            except Empty:
                if stage is not None and not serves:
                    self._on_stage(stage)  # Ray's own start takes long and says nothing
                continue
            match report:
                case Starting():
                    stage = report.stage
                    self._on_stage(stage)
                case Serving():
                    serves = True
                    self._on_serving(report.open_ports)
                case CutOff():
                    seconds = self._config.drain_s if hurried is None else None
                    log_event("requests cut off", level="warning", requests=report.requests, drain_s=seconds)
                case NotStarted():
                    raise _Again(report.message) if report.again else LaunchError(report.message)
                case Ended():
                    raise error_from_code(report.code, report.message, report.parameter)
                case None if received is not None:
                    return received
                case None:
                    raise ServerError(f"the process that keeps Ray {keeper.describe_exit()}")

    def _log(self, output: Output) -> None:
        """Log a line of a replica, whose own log is JSON."""
        if self._log_format == "text":
            with suppress(ValueError, TypeError, KeyError, AttributeError):
                entry = json.loads(output.line)
                del entry["time"]
                log_event(entry.pop("event"), level=entry.pop("level"), **entry)
                return
        log_output(output.process, output.line, has_log=True)


def _end(keeper: Child) -> None:
    """End the keeper's process, which ends all others; then whatever is left of it."""
    keeper.send_signal(signal.SIGTERM)
    if not AwakeClock().wait(keeper.wait, END_S + TERMINATE_S):
        keeper.send_signal(signal.SIGKILL)
        keeper.wait(TERMINATE_S)
    end_descendants(END_S)
