"""The two ways to serve that one suite of tests asks: `krea2 serve`, and `krea2 cluster run` with two replicas."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import psutil

from tests.launcher.demo_server import PATIENT_WARM_UP
from tests.launcher.filters.stand_in import STAND_IN
from tests.launcher.processes import PATIENCE_S, Marked, new_marked, temporary_folder, wait_until
from tests.launcher.ray.left_behind import MARK, Before, Listening, listening, named

KEY = "sk-of-the-tests"
APP = "https://app.example"  # whose pages may use the servers from a browser
MAX_QUEUE, MAX_BODY_BYTES = 24, 200_000
REPLICAS = 2
# Of both, by the names that both commands have.
OPTIONS = (
    "--device", "cpu", "--served-model-name", "krea,krea-2-turbo", "--lora", "ink=demo-outlined",
    "--limit", f"max_queue={MAX_QUEUE}", "--allow-origin", APP, "--max-body-bytes", str(MAX_BODY_BYTES),
)  # fmt: skip
FAULTS, AUDIT = "faults", "audit"  # folders: of a filter's faults that have begun, and of the audit log
# Red pictures are blocked for requests alone that ask for the other thresholds: many of the tests draw some.
FILTER = f"{STAND_IN},most=2,block=nude:0.8,block=red:never,low-block=nude:0.95,low-block=red:0.6"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}


@dataclass(frozen=True)
class Served:
    """A server: where it listens, its processes, and the command that started them, whose stderr is in `log`."""

    url: str
    marked: Marked
    process: Popen[str]
    log: Path
    replicas: int = 1
    before: Before | None = None  # what there was before it
    listened: tuple[Listening, ...] = ()  # at once when it was there

    def client(self, **headers: str) -> httpx.Client:
        """A client with the key, to be closed. It reads no certificates, which takes longer than many a request."""
        unlimited = httpx.Limits(max_connections=None)
        sent = WITH_KEY | headers
        return httpx.Client(base_url=self.url, headers=sent, timeout=PATIENCE_S, verify=False, limits=unlimited)

    def ask(self, method: str, path: str, **sent: Any) -> httpx.Response:
        """Send one request on a connection of its own."""
        with self.client() as client:
            return client.request(method, path, **sent)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return self.ask("POST", path, json=body, headers=headers)

    def load(self) -> tuple[int, int]:
        """How many requests wait, and how many run."""
        answers: list[httpx.Response] = []

        def is_told() -> bool:  # engines that have no time for that leave a cluster without an answer
            answers.append(self.ask("GET", "/v1/status"))
            return answers[-1].status_code == 200

        wait_until(is_told, "the status")
        status = answers[-1].json()
        return status["waiting"], status["running"]

    def processes(self, *words: str) -> list[psutil.Process]:
        """Its processes in whose title or command all these words are, the oldest first."""
        assert self.before is not None
        return named(self.before.since(), *words)

    def wait_for_rest(self) -> None:
        """Wait until no request waits or runs."""
        wait_until(lambda: self.load() == (0, 0), "the end of all requests")


@contextmanager
def serve(*options: str) -> Iterator[Served]:
    """`krea2 serve`, with the options of both and these."""
    with temporary_folder() as folder:
        marked = _marked(folder)
        before = Before(marked.environment[MARK])
        try:
            yield _started(marked, ("serve", "--port", "0", *OPTIONS, *options), before)
        finally:
            marked.kill()


@contextmanager
def cluster(*options: str, replicas: int = REPLICAS) -> Iterator[Served]:
    """`krea2 cluster run`, with the options of both and these. It ends by Ctrl-C, and must leave nothing."""
    with temporary_folder() as folder:
        marked = _marked(folder)
        before = Before(marked.environment[MARK])
        command = ("cluster", "run", "--replicas", str(replicas), "--port", "0", *OPTIONS, *options)
        try:
            served = _started(marked, command, before, replicas)
            yield served
            if served.process.poll() is None:
                os.killpg(served.process.pid, signal.SIGINT)  # as a terminal does: to all that it has started, too
                assert served.process.wait(PATIENCE_S) == 128 + signal.SIGINT, served.log.read_text()[-5000:]
            before.expect_nothing_left(marked.folder)
        finally:
            marked.kill()
            for process in before.since():
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _marked(folder: str) -> Marked:
    marked = new_marked(Path(folder))
    marked.run_first(PATIENT_WARM_UP)
    marked.environment["KREA2_API_KEY"] = KEY
    return marked


def _started(marked: Marked, command: tuple[str, ...], before: Before, replicas: int = 1) -> Served:
    """Start a command that prints its address, and wait until it can draw."""
    log, faults = marked.folder / "stderr", marked.folder / FAULTS
    faults.mkdir()
    command += ("--filter", f"{FILTER},faults={faults}", "--audit-log", str(marked.folder / AUDIT))
    with log.open("w") as stderr:
        process = marked.start_krea2(*command, stderr=stderr, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("http: "):
            break
    else:
        raise AssertionError(f"the server ended before it said where it listens: {log.read_text()[-5000:]}")
    served = Served(
        line.removeprefix("http: ").strip(), marked, process, log, replicas, before, tuple(listening(before.since()))
    )
    wait_until(lambda: served.ask("GET", "/ready").status_code == 200, "readiness")
    return served
