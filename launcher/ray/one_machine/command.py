"""The command's side of a cluster on one machine: it has a process that keeps the Ray, and ends it with itself."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NamedTuple

from engine.errors import Krea2Error, LaunchError, ServerError, error_from_code
from launcher.awake import AwakeClock
from launcher.http.server_process import listen
from launcher.logs import log_event, log_output
from launcher.messages.configs import Ended, Starting
from launcher.messages.message_parts import Stage
from launcher.processes import SIGNALS, TERMINATE_S, Child
from launcher.ray.one_machine.descendants import adopt_orphans, end_descendants
from launcher.ray.one_machine.keeper import END_S
from launcher.ray.one_machine.messages import ClusterConfig, OpenPort, Output, Serving, decode_report

_POLL_S = 0.2


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


_Report = Starting | Serving | Ended | None  # None: the keeper's process has ended


def serve_until_stopped(
    config: ClusterConfig,
    *,
    api_keys: Sequence[str],
    log_format: str,
    on_stage: Callable[[Stage], None],
    on_serving: Callable[[Sequence[OpenPort]], None],
    on_draining: Callable[[], None],
) -> signal.Signals | None:
    """Run a cluster on this machine until SIGINT, SIGTERM or SIGHUP; a second one does not wait for what runs.

    api_keys: of HTTP clients, which go to the ingress in its environment. log_format: of this process' log, which has
    what replicas log, too. Returns the signal that ended it. No process and no file is left when this returns or
    raises; raises what a replica, or Ray, failed with.
    """
    reports: SimpleQueue[_Report] = SimpleQueue()
    signals: SimpleQueue[signal.Signals] = SimpleQueue()

    def take(data: bytes) -> None:
        report = decode_report(data)
        if isinstance(report, Output):
            _log(report, log_format)
        else:
            reports.put(report)

    def note(number: int, _: FrameType | None) -> None:
        signals.put(signal.Signals(number))

    for number in SIGNALS:
        signal.signal(number, note)
    adopt_orphans()  # those of a keeper that was killed
    keeper = None
    try:
        environment = {"KREA2_API_KEY": " ".join(api_keys)} if api_keys else {}
        try:
            keeper = Child("_cluster", config, environment=environment, on_report=take)
        except OSError as error:
            raise LaunchError(f"Ray's process cannot be started: {error.strerror or error}") from None
        keeper.on_exit(lambda: reports.put(None))
        return _follow(config, keeper, reports, signals, on_stage, on_serving, on_draining)
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if keeper is not None:
            _end(keeper)


def _follow(
    config: ClusterConfig,
    keeper: Child,
    reports: SimpleQueue[_Report],
    signals: SimpleQueue[signal.Signals],
    on_stage: Callable[[Stage], None],
    on_serving: Callable[[Sequence[OpenPort]], None],
    on_draining: Callable[[], None],
) -> signal.Signals | None:
    """Follow it from its start to its end."""
    received: signal.Signals | None = None
    serves = False
    while True:
        with suppress(Empty):
            number = signals.get_nowait()
            if received is not None or not (serves and config.drain_s):
                return number
            received = number
            on_draining()
            keeper.ask_to_stop()
        try:
            report = reports.get(timeout=_POLL_S)
        except Empty:
            continue
        if isinstance(report, Starting):
            on_stage(report.stage)
        elif isinstance(report, Serving):
            serves = True
            on_serving(report.open_ports)
        elif isinstance(report, Ended):
            raise _error(report)
        elif received is not None:
            return received
        else:
            raise ServerError(f"the process that keeps Ray {keeper.describe_exit()}")


def _log(output: Output, log_format: str) -> None:
    """Log a line of a replica, whose own log is JSON."""
    if log_format == "text":
        with suppress(ValueError, TypeError, KeyError):
            entry = json.loads(output.line)
            del entry["time"]
            log_event(entry.pop("event"), level=entry.pop("level"), **entry)
            return
    log_output(output.process, output.line, has_log=True)


def _error(report: Ended) -> Krea2Error:
    return error_from_code(report.code, report.message, report.parameter)


def _end(keeper: Child) -> None:
    """End the keeper's process, which ends all others; then whatever is left of it."""
    keeper.send_signal(signal.SIGTERM)
    if not AwakeClock().wait(keeper.wait, END_S + TERMINATE_S):
        keeper.send_signal(signal.SIGKILL)
        keeper.wait(TERMINATE_S)
    end_descendants(END_S)
