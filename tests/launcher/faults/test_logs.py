"""Whoever does not read the log of a server stops nothing, and finds whole lines in it afterwards."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from subprocess import Popen
from threading import Thread
from typing import Any

import httpx
import pytest

from engine.errors import ArgumentError
from launcher import AsyncClient
from launcher.lines import MAX_LINES
from tests.launcher.http_servers import PATH, PROMPT
from tests.launcher.processes import PATIENCE_S, Marked, connect, wait_until

pytestmark = pytest.mark.slow

CLIENTS = 32
IMAGE = {"prompt": PROMPT, "size": "64x64", "steps": 1, "seed": 1}
REFUSED = {"prompt": PROMPT, "loras": [{"name": "none"}]}  # by the front-end, which logs that, too
# Looks again and again for Ctrl-C. Right after SIGCONT any thread may be the one that takes a signal, and Python raises
# nothing until the main thread, which nothing wakes then, runs.
LAUNCHING = """
import time
from launcher import launch
with launch(device="cpu", warm_up=False) as client:
    print(client.address, flush=True)
    while True:
        time.sleep(0.1)
"""


def start(marked: Marked) -> tuple[Popen[str], str]:
    """A server whose stderr is a pipe that nobody reads, and its url, once it makes images."""
    process = marked.start_krea2("serve", "--device", "cpu", "--port", "0", "--drain-s", "1")
    assert process.stdout is not None
    url = process.stdout.readline().strip().removeprefix("http: ")
    wait_until(lambda: httpx.get(f"{url}/ready", timeout=PATIENCE_S).status_code == 200, "readiness")
    return process, url


class Log(Thread):
    """Reads all that a server says until it ends."""

    def __init__(self, process: Popen[str]) -> None:
        super().__init__(daemon=True)
        assert process.stderr is not None
        self._stderr = process.stderr
        self.lines: list[str] = []
        self.start()

    def run(self) -> None:
        for line in self._stderr:
            self.lines.append(line)

    def entries(self) -> list[dict[str, Any]]:
        """What it has said so far; each line must be one object."""
        entries = [json.loads(line) for line in self.lines]
        assert all({"time", "level", "event"} <= set(entry) for entry in entries)
        return entries


def ask_for_nothing(url: str, count: int) -> None:
    """Requests that cost the server little more than a line of its log."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)
    for _ in range(count):
        connection.request("GET", "/v1/nothing")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 404
    connection.close()


def side_by_side(work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(work) for _ in range(CLIENTS)]:
            done.result(PATIENCE_S)


def test_a_server_whose_log_nobody_reads_serves_on_and_tells_what_is_missing(marked: Marked) -> None:
    process, url = start(marked)
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        for number in range(420):
            answer = client.post(PATH, json=IMAGE if number % 10 == 0 else REFUSED)
            assert answer.status_code == (200 if number % 10 == 0 else 400), answer.text
        side_by_side(lambda: ask_for_nothing(url, (MAX_LINES + 2000) // CLIENTS))
        assert client.post(PATH, json=IMAGE).status_code == 200

        def dropped_lines() -> float:
            lines = client.get("/metrics").text.splitlines()
            (dropped,) = (float(line.split()[1]) for line in lines if line.startswith("krea2_dropped_log_lines"))
            return dropped

        wait_until(lambda: dropped_lines() > 500, "the loss of lines, some of which the HTTP process has yet to write")
        dropped = dropped_lines()
    log = Log(process)
    wait_until(lambda: any("log lines dropped" in line for line in log.lines), "word of the dropped lines")
    ask_for_nothing(url, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    log.join(PATIENCE_S)
    entries = log.entries()
    assert sum(entry["lines"] for entry in entries if entry["event"] == "log lines dropped") >= dropped
    place = [entry["event"] for entry in entries].index("log lines dropped")
    assert "/v1/nothing" in [entry.get("path") for entry in entries[place:]]
    assert sum(entry["event"] == "request refused" for entry in entries) == 378
    marked.expect_nothing_left()


def test_a_server_whose_log_nobody_reads_ends(marked: Marked) -> None:
    process, url = start(marked)
    side_by_side(lambda: ask_for_nothing(url, 40))
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    marked.expect_nothing_left()


def test_a_front_end_whose_parent_is_stopped_serves_on(marked: Marked) -> None:
    """The program that launched it reads what it says, unless it is stopped."""
    marked.use_hollow_ranks()
    program = marked.start_script(LAUNCHING)
    assert program.stdout is not None
    address = program.stdout.readline().strip()
    assert address, program.communicate()
    program.send_signal(signal.SIGSTOP)
    with connect(address) as client:
        client.run(ask_for_what_is_refused(client.asynchronous, 200 * CLIENTS))
        assert client.status().ready
    program.send_signal(signal.SIGCONT)
    program.send_signal(signal.SIGINT)
    program.wait(PATIENCE_S)
    marked.expect_nothing_left()


async def ask_for_what_is_refused(client: AsyncClient, count: int) -> None:
    async def ask() -> None:
        for _ in range(count // CLIENTS):
            with pytest.raises(ArgumentError):
                await client.generate(PROMPT, loras=["none"])

    await asyncio.gather(*(ask() for _ in range(CLIENTS)))


def test_every_line_is_one_object_under_load(marked: Marked) -> None:
    """Lines of the HTTP process, of the front-end and of its ranks meet in one file."""
    process, url = start(marked)
    log = Log(process)

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            for number in range(40):
                answer = client.post(PATH, json=IMAGE if number % 20 == 0 else REFUSED)
                assert answer.status_code in (200, 400)

    side_by_side(ask)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    log.join(PATIENCE_S)
    entries = log.entries()
    events = [entry["event"] for entry in entries if entry.get("path") in (None, PATH)]
    assert events.count("http") == 40 * CLIENTS
    assert events.count("request refused") == 38 * CLIENTS
    assert events.count("request done") == 2 * CLIENTS
    marked.expect_nothing_left()
