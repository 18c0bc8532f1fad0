"""Bodies and headers that took the HTTP process or the front-end seconds, and what everybody else noticed of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.launcher.http_servers import PATH, PROMPT, events_of
from tests.launcher.processes import PATIENCE_S, Marked, new_marked, temporary_folder, wait_until

AT_ONCE = 3
LONGEST_S = 0.3  # of its CPU time in which it does not answer /health, in the best of a few tries
TRIES = 5
MOST_CPU_S = 1.0  # of the process for `AT_ONCE` of an input, which took 5 seconds for one
MOST_BYTES = 64 << 20  # more than before at any time, for all inputs
IMAGE = {"prompt": PROMPT, "seed": 1, "steps": 4, "width": 128, "height": 128}
MB = 1_000_000


def with_length(path: str, fields: str) -> bytes:
    body = f'{{"prompt": "x", "name": "x", {fields}}}'.encode()
    return _head(path, f"Content-Length: {len(body)}") + body


def in_chunks(body: bytes) -> bytes:
    return _head(PATH, "Transfer-Encoding: chunked") + body


def _head(path: str, length: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", length, "Connection: close")
    return "\r\n".join((*lines, "", "")).encode()


INPUTS = {
    "numbers": with_length(PATH, '"loras": [' + ",".join(["1"] * (MB // 2)) + "]"),
    "objects": with_length(PATH, '"loras": [' + ",".join(["{}"] * (MB // 3)) + "]"),
    "unknown keys": with_length(PATH, ",".join(f'"k{index}": 1' for index in range(80_000))),
    "unknown keys of a LoRA": with_length("/v1/loras", ",".join(f'"k{index}": 1' for index in range(80_000))),
    "a long key": with_length(PATH, f'"{"k" * MB}": 1'),
    "a long text": with_length(PATH, f'"size": "{chr(92)}n{f"{chr(92)}n" * (MB // 2)}"'),
    "lists in lists": with_length(PATH, '"loras": ' + "[" * MB),
    "a million chunks": in_chunks(b"1\r\n \r\n" * MB + b"0\r\n\r\n"),
    "as many chunks as may be": in_chunks(b"1\r\n \r\n" * 1000 + b"0\r\n\r\n"),
    "many headers": _head(PATH, "a:\r\n" * 7000 + "Content-Length: 0"),
    "many trailers": in_chunks(b"0\r\n" + b"a:\r\n" * 60_000 + b"\r\n"),
}


class Served(NamedTuple):
    """A server, its HTTP process, and the folder that its clients may load LoRAs from."""

    url: str
    marked: Marked
    http: psutil.Process
    frontend: psutil.Process
    loras: Path


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with temporary_folder() as folder:
        marked, loras = new_marked(Path(folder)), Path(folder) / "loras"
        loras.mkdir()
        try:
            process = marked.start_krea2(
                *("serve", "--device", "cpu", "--port", "0", "--lora-dir", str(loras)), stderr=DEVNULL
            )
            assert process.stdout is not None
            url = process.stdout.readline().strip().removeprefix("http: ")
            wait_until(lambda: httpx.get(f"{url}/ready", timeout=PATIENCE_S).status_code == 200, "readiness")
            yield Served(url, marked, marked.alive("_http")[0], psutil.Process(process.pid), loras)
        finally:
            marked.kill()


@pytest.mark.slow
def test_bodies_of_too_much_are_noticed_by_nobody(served: Served) -> None:
    alone = image(served)
    _peak(served.http)  # from here on
    before = served.http.memory_info().rss
    gaps: dict[str, float] = {}
    took: dict[str, float] = {}
    with ThreadPoolExecutor(1) as others:
        for name, sent in INPUTS.items():
            tries = []
            while len(tries) < TRIES and min(tries, default=1.0) > LONGEST_S:
                in_flight = others.submit(image, served)
                with longest_gap(f"{served.url}/health", served.http) as longest:
                    answers = at_once(lambda sent=sent: send(served, sent))  # type: ignore[misc]
                tries.append(longest())
                assert all(not answer or answer.startswith(b"HTTP/1.1 4") for answer in answers), (name, answers)
                assert in_flight.result(PATIENCE_S) == alone, name
            gaps[name] = min(tries)
            before_s = cpu_s(served.http)
            at_once(lambda sent=sent: send(served, sent))  # type: ignore[misc]
            took[name] = cpu_s(served.http) - before_s
    print(gaps, took)
    assert max(gaps.values()) <= LONGEST_S, gaps
    assert max(took.values()) < MOST_CPU_S, took
    assert _peak(served.http) - before < MOST_BYTES
    assert served.marked.alive("_http") == [served.http]


@pytest.mark.slow
def test_a_header_of_nested_lists_keeps_no_request_waiting(served: Served) -> None:
    size = 16 << 20
    files = {"none": b"{}", "nested": b'{"a":' + b"[" * size, "flat": b'{"a":[' + b"[]," * (size // 3)}
    for name, header in files.items():
        header = header[:size]
        (served.loras / name).write_bytes(len(header).to_bytes(8, "little") + header)

        def load(name: str = name) -> httpx.Response:
            return httpx.post(f"{served.url}/v1/loras", json={"name": name}, timeout=PATIENCE_S)

        tries = []
        while len(tries) < TRIES and min(tries, default=1.0) > LONGEST_S:
            with longest_gap(f"{served.url}/ready", served.http, served.frontend) as longest:  # whom it asks
                answers = at_once(load)
            tries.append(longest())
            assert [answer.json()["error"]["code"] for answer in answers].count("bad_lora") >= 1
            assert all(answer.status_code == 400 for answer in answers)
        assert min(tries) <= LONGEST_S, (name, tries)
        if name == "none":
            before = max(_peak(served.frontend), served.frontend.memory_info().rss)
    assert _peak(served.frontend) - before < 8 * size  # three copies of the text were there at once


@pytest.mark.slow
def test_whoever_waits_for_a_front_end_that_is_killed_is_told(served: Served) -> None:
    """The last: it ends the server."""
    long = IMAGE | {"steps": 200, "width": 512, "height": 512}
    with ThreadPoolExecutor(3) as clients:
        asked = [
            clients.submit(httpx.post, served.url + PATH, json=long | fields, timeout=PATIENCE_S)
            for fields in ({}, {"stream": True}, {"stream": True, "progress": True})
        ]
        wait_until(lambda: in_flight(served) == len(asked), "the acceptance of all")
        served.frontend.kill()
        plain, *streams = (each.result(PATIENCE_S) for each in asked)
    assert (plain.status_code, plain.json()["error"]["code"]) == (503, "server_unavailable")
    assert int(plain.headers["retry-after"]) >= 1
    for stream in streams:
        name, data = events_of(stream.text)[-1]
        assert (name, data["error"]["code"]) == ("error", "server_unavailable")


def in_flight(served: Served) -> int:
    answer = httpx.get(f"{served.url}/ready", timeout=PATIENCE_S)
    return sum(answer.json()[state] for state in ("waiting", "running")) if answer.status_code == 200 else 0


def image(served: Served) -> str:
    answer = httpx.post(served.url + PATH, json=IMAGE, timeout=PATIENCE_S)
    file: str = answer.json()["data"][0]["b64_json"]
    return file


def at_once(send_one: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(AT_ONCE) as clients:
        return [sent.result(PATIENCE_S) for sent in [clients.submit(send_one) for _ in range(AT_ONCE)]]


def send(served: Served, sent: bytes) -> bytes:
    """Send bytes, and return what is answered; nothing if the connection was reset over what was not read of them."""
    address = urlsplit(served.url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port), PATIENCE_S) as connection:
        try:
            connection.sendall(sent)
            return connection.recv(1000)
        except ConnectionError:
            return b""


@contextmanager
def longest_gap(url: str, *processes: psutil.Process) -> Iterator[Callable[[], float]]:
    """Ask for a page all the time. Gives what tells, after the block, how long processes computed before an answer at
    most: by the clock it may have been others that computed."""
    took: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not ended.is_set() or len(took) < 2:
                began = cpu_s(*processes)
                wait_until(lambda: client.get(url).status_code == 200, f"{url}, well")
                took.append(cpu_s(*processes) - began)
                ended.wait(0.01)

    with ThreadPoolExecutor(1) as asking:
        done = asking.submit(ask)
        wait_until(lambda: bool(took) or done.done(), "the first answer")
        del took[:]  # which a connection had to be made for
        try:
            yield lambda: max(took)
        finally:
            ended.set()
            done.result(PATIENCE_S)


def cpu_s(*processes: psutil.Process) -> float:
    """The seconds that processes have computed for so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _peak(process: psutil.Process) -> int:
    """The most bytes that a process has had since the last call."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
