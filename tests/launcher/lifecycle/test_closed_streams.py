"""A server that is started with streams closed, as some programs start others."""

from __future__ import annotations

import signal
import sys

import httpx

from tests.launcher.processes import PATIENCE_S, Marked, wait_until


def test_a_server_without_stdin_and_stderr_answers(marked: Marked) -> None:
    marked.use_hollow_ranks()
    closed = ("sh", "-c", 'exec "$@" <&- 2>&-', "sh")  # not in a fork of this process, where other threads run
    server = marked.start(*closed, sys.executable, "-m", "launcher", "serve", "--device", "cpu", "--port", "0")
    assert server.stdout is not None
    url = server.stdout.readline().strip().removeprefix("http: ")
    assert server.stdout.readline()
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        wait_until(lambda: client.get("/ready").status_code == 200, "an answer")
    server.send_signal(signal.SIGTERM)
    assert server.wait(PATIENCE_S) == 128 + signal.SIGTERM
    marked.expect_nothing_left()
