"""An HTTP process that dies or hangs is replaced, and nothing else takes its parent for one that hangs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config.engine_config import EngineConfig
from launcher.awake import AwakeClock
from launcher.http.workers import worker as worker_module
from launcher.http.workers.worker import HttpWorker, read_at_hangups
from launcher.messages.api_keys import ApiKey
from launcher.messages.configs import HttpConfig
from launcher.messages.limits import Limits
from launcher.messages.own_clients import OwnClients
from launcher.processes import Child, stop_all
from tests.launcher.processes import PATIENCE_S, wait_until

# Stands for an HTTP process: says who it is, and beats.
CHILD = """
import os, sys, time
from launcher.messages.configs import Beat, HttpConfig
from launcher.processes import Reporter, read_config, watch_parent
config = read_config(HttpConfig)
parent = Reporter()
parent.send(Beat())  # before anybody knows of us, and may stop us: without a first beat the parent waits for long
with open(config.rpc, "a") as file:
    file.write(f"{os.getpid()} {config.client_name.hex()}\\n")
watch_parent(lambda _: os._exit(0))
while True:
    parent.send(Beat())
    time.sleep(0.02)
"""


class Watched:
    """A worker of such processes, what they said, and the clock by which their parent, which looks often, waits."""

    def __init__(self, folder: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said = folder / "said"
        self.gone_by = 0.0  # seconds beside those that really have
        self.hurries = 0  # looks for which half a second goes by at once
        self.looks = self.beats = 0
        clock = AwakeClock(self._look)
        monkeypatch.setattr(worker_module, "AwakeClock", lambda: clock)
        monkeypatch.setattr(worker_module, "Child", self._child)
        monkeypatch.setattr(worker_module, "TICK_S", 0.02)
        self.own_clients = OwnClients()
        self.stopping = threading.Event()
        config = HttpConfig(
            engine=EngineConfig(), limits=Limits(), socket_fd=listening.fileno(), rpc=str(self.said), worker=1
        )
        self.worker = HttpWorker(config, self.own_clients, self.stopping)

    def _look(self) -> float:
        self.looks += 1
        if self.hurries:
            self.hurries -= 1
            self.gone_by += 0.5
        return time.monotonic() + self.gone_by

    def _child(self, *arguments: Any, on_report: Callable[[bytes], None], **options: Any) -> Child:
        def count(frame: bytes) -> None:
            on_report(frame)
            self.beats += 1

        return Child(*arguments, on_report=count, **options)

    def wait_for_beat(self) -> None:
        """Wait until another beat has come, and the parent has looked."""
        beats = self.beats
        wait_until(lambda: self.beats > beats, "a beat")
        self.wait_for_look()

    def wait_for_look(self) -> None:
        looks = self.looks
        wait_until(lambda: self.looks > looks + 1, "a look at the clock")

    def processes(self, count: int) -> list[tuple[int, bytes]]:
        wait_until(lambda: self.said.exists() and self.said.read_text().count("\n") >= count, f"{count} processes")
        lines = [line.split() for line in self.said.read_text().splitlines()]
        return [(int(pid), bytes.fromhex(name)) for pid, name in lines]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr("launcher.processes.python_command", lambda *_: [sys.executable, "-c", CHILD])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        watched = Watched(tmp_path, listening, monkeypatch)
        yield watched
        watched.stopping.set()
        stop_all(watched.worker.child())


def test_a_process_that_dies_or_hangs_is_replaced_by_one_of_another_name(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="krea2")
    ((first, name),) = watched.processes(1)
    assert name in watched.own_clients
    os.kill(first, signal.SIGKILL)
    _, (second, next_name) = watched.processes(2)
    assert next_name != name
    assert name not in watched.own_clients
    os.kill(second, signal.SIGSTOP)
    watched.hurries = 3 * int(worker_module.SILENT_S)
    *_, (third, last_name) = watched.processes(3)
    assert third not in (first, second)
    assert last_name in watched.own_clients
    assert next_name not in watched.own_clients
    lost = [record.fields for record in caplog.records if record.getMessage() == "http process lost"]  # type: ignore[attr-defined]
    assert "SIGKILL" in lost[0]["reason"]
    assert lost[1]["reason"] == "its event loop had not run for 10 s, so it was killed"
    assert [fields["worker"] for fields in lost] == [1, 1]
    json.dumps(lost)


def test_a_parent_that_was_stopped_gives_its_process_time_to_be_heard(watched: Watched) -> None:
    """As when all processes are stopped together, and this one goes on first."""
    ((pid, _),) = watched.processes(1)
    watched.wait_for_beat()
    before = watched.worker.child()
    os.kill(pid, signal.SIGSTOP)
    watched.gone_by += 25.0
    watched.wait_for_look()
    os.kill(pid, signal.SIGCONT)
    watched.wait_for_beat()
    assert watched.worker.child() == before
    assert len(watched.processes(1)) == 1


def test_nothing_is_started_once_it_is_stopping(watched: Watched) -> None:
    ((pid, name),) = watched.processes(1)
    watched.stopping.set()
    stop_all(watched.worker.child())
    wait_until(lambda: name not in watched.own_clients, "the end of the process")
    assert [found for found, _ in watched.processes(1)] == [pid]


def test_one_that_does_not_read_its_configuration_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = f"import time; open({str(tmp_path / 'deaf')!r}, 'w').close(); time.sleep({2 * PATIENCE_S})"
    monkeypatch.setattr("launcher.processes.python_command", lambda *_: [sys.executable, "-c", deaf])
    keys = tuple(ApiKey(name=f"key-{number}", key="k" * 500) for number in range(1000))
    stopping, stopped = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = HttpConfig(engine=EngineConfig(), limits=Limits(), socket_fd=listening.fileno(), file_keys=keys)
        worker = HttpWorker(config, OwnClients(), stopping)

        def stop() -> None:
            worker.renew_keys(keys)
            stopping.set()
            stop_all(worker.child())
            stopped.set()

        wait_until((tmp_path / "deaf").exists, "the process")
        threading.Thread(target=stop, daemon=True).start()
        assert stopped.wait(PATIENCE_S)
    (child,) = worker.child()
    assert child.wait(PATIENCE_S)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_what_it_logged_of_its_last_request_is_not_why_it_died(
    log_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""
import os, signal
from launcher.logs import configure_logs, flush_stderr, log_event
configure_logs({log_format!r})
print("out of cheese", flush=True)
log_event("http", path="/ready", status=200)
flush_stderr()
os.kill(os.getpid(), signal.SIGKILL)
"""
    monkeypatch.setattr("launcher.processes.python_command", lambda *_: [sys.executable, "-c", script])
    child = Child("_http", HttpConfig(engine=EngineConfig(), limits=Limits()), has_log=True)
    assert child.wait(PATIENCE_S)
    assert "/ready" in child.tail[-1]
    assert re.fullmatch(r"was killed by SIGKILL, .* memory ran out \(.* GB\): out of cheese", child.describe_exit())


def test_keys_are_read_beside_the_event_loop_and_again_whatever_became_of_the_last_time() -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    went_on: list[bool] = []

    def read() -> None:
        begun.release()
        went_on.append(go_on.acquire(timeout=PATIENCE_S))
        raise ValueError("a bug")

    async def test() -> None:
        reading = asyncio.create_task(read_at_hangups(read))
        await asyncio.sleep(0)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            while not begun.acquire(blocking=False):
                await asyncio.sleep(0.01)
            go_on.release()
        reading.cancel()

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asyncio.run(test())
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until(lambda: len(went_on) == 2, "both readings")
    assert went_on == [True, True]
