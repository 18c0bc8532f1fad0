"""Processes that are stopped for a while, as in a paused container, and HTTP processes that hang or die."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from launcher.client.results import Result
from tests.launcher.http_servers import PATH, PROMPT
from tests.launcher.processes import PATIENCE_S, Marked, connect, is_stopped, read_log, wait_until

PAUSE_S = 22.0  # longer than a lease, and far from the 30 s of silence after which a client gives a server up
LONG = {"steps": 60, "size": "64x64", "seed": 7}  # some seconds of work

pytestmark = pytest.mark.slow


class Server(NamedTuple):
    """A server with two ranks of the demo, ready for images."""

    marked: Marked
    url: str
    rpc: str

    def log(self) -> list[dict[str, Any]]:
        return read_log(self.marked.folder / "log")

    def is_ready(self) -> bool:
        return httpx.get(f"{self.url}/ready", timeout=PATIENCE_S).status_code == 200


@contextmanager
def demo_server(marked: Marked, *arguments: str) -> Iterator[Server]:
    with (marked.folder / "log").open("w") as log:
        process = marked.start_krea2("serve", "--device", "cpu", "--tp", "2", "--port", "0", *arguments, stderr=log)
    assert process.stdout is not None
    url, rpc = (process.stdout.readline().partition(": ")[2].strip() for _ in range(2))
    server = Server(marked, url, rpc)
    wait_until(server.is_ready, "readiness")
    yield server
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    marked.expect_nothing_left()


class Stream:
    """An image that comes with its progress; how far it is, and the picture once it is there."""

    def __init__(
        self, server: Server, workers: ThreadPoolExecutor, client: httpx.Client | None = None, **changes: object
    ) -> None:
        self.step = 0
        body = {"prompt": PROMPT, "stream": True, "progress": True, **LONG, **changes}
        client = httpx.Client(timeout=PATIENCE_S) if client is None else client
        self.done: Future[np.ndarray] = workers.submit(self._read, client, server.url + PATH, body)

    def _read(self, client: httpx.Client, url: str, body: dict[str, object]) -> np.ndarray:
        with closing(client), client.stream("POST", url, json=body) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    assert event.get("attempt", 1) == 1, event
                    self.step = event.get("step", self.step)
                    if event["type"] == "image_generation.completed":
                        return pixels(event["b64_json"])
        raise AssertionError("the stream ended without an image")


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))), dtype=np.int16)


def post(server: Server) -> np.ndarray:
    answer = httpx.post(server.url + PATH, json={"prompt": PROMPT, **LONG}, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    return pixels(answer.json()["data"][0]["b64_json"])


def generate(server: Server) -> Result:
    with connect(server.rpc) as client:
        return client.generate(PROMPT, steps=60, width=64, height=64, seed=7)


def under_way(streams: list[Stream]) -> bool:
    """Whether all have begun; an error that has come is raised."""
    for stream in streams:
        if stream.done.done():
            stream.done.result()
    return all(stream.step >= 2 for stream in streams)


def client_of(server: Server, process: psutil.Process) -> httpx.Client:
    """A client whose connection one of the HTTP processes has accepted."""
    with ExitStack() as others:
        while True:
            client = httpx.Client(timeout=PATIENCE_S)
            answer = client.get(f"{server.url}/health")
            port = answer.extensions["network_stream"].get_extra_info("socket").getsockname()[1]
            if port in {found.raddr.port for found in process.net_connections("tcp") if found.raddr}:
                return client
            others.callback(client.close)


def test_who_is_stopped_for_22_s_goes_on_as_if_nothing_had_been(marked: Marked) -> None:
    with demo_server(marked) as server, ThreadPoolExecutor(16) as workers:
        alone = post(server)
        _all_at_once(server, workers, alone)
        _http_alone(server, workers, alone)


def _all_at_once(server: Server, workers: ThreadPoolExecutor, alone: np.ndarray) -> None:
    """Every process is stopped; whoever waits for an answer gets it."""
    stopped = server.marked.alive()
    assert len(stopped) == 4
    streams = [Stream(server, workers) for _ in range(2)]
    others: list[Future[Any]] = [workers.submit(post, server), workers.submit(generate, server)]
    wait_until(lambda: under_way(streams), "progress")
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as half_sent:
        half_sent.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        assert not any(call.done() for call in others)
        time.sleep(PAUSE_S)
        for process in stopped:
            process.send_signal(signal.SIGCONT)
        half_sent.sendall(b"\r\n")
        assert b" 200 " in half_sent.recv(100)
    for picture in (*(stream.done.result() for stream in streams), others[0].result()):
        assert np.abs(picture - alone).max() <= 1
    assert others[1].result().attempt == 1
    assert server.marked.alive() == stopped
    assert {entry["event"] for entry in server.log() if entry["level"] != "info"} == set()


def _http_alone(server: Server, workers: ThreadPoolExecutor, alone: np.ndarray) -> None:
    """It is replaced, and who speaks RPC notices nothing."""
    (http,) = server.marked.alive("_http")
    call = workers.submit(generate, server)
    http.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_stopped(http), "the stop of every thread")
    assert httpx.get(f"{server.url}/health", timeout=PATIENCE_S).status_code == 200
    assert call.result().attempt == 1
    wait_until(server.is_ready, "readiness")
    assert np.abs(post(server) - alone).max() <= 1
    (lost,) = (entry for entry in server.log() if entry["event"] == "http process lost")
    assert lost["reason"] == "its event loop had not run for 10 s, so it was killed"


def test_the_death_of_an_http_process_is_that_of_its_own_requests_alone(marked: Marked) -> None:
    with demo_server(marked, "--http-workers", "2") as server, ThreadPoolExecutor(16) as workers:
        call = workers.submit(generate, server)
        first, second = marked.wait_for("_http", 2)
        streams = [
            Stream(server, workers, client_of(server, process), steps=200) for process in (first, first, second, second)
        ]
        wait_until(lambda: under_way(streams), "progress")
        first.kill()
        for _ in range(20):
            assert httpx.get(f"{server.url}/health", timeout=PATIENCE_S).status_code == 200
        pictures = [stream.done.result() for stream in streams[2:]]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
        for stream in streams[:2]:
            with pytest.raises(httpx.TransportError):
                stream.done.result()
        assert call.result().attempt == 1
        wait_until(lambda: len(marked.alive("_http")) == 2, "another HTTP process")

        def failed() -> list[Any]:
            return [entry["code"] for entry in server.log() if entry["event"] == "request failed"]

        wait_until(lambda: len(failed()) >= 2, "the failures in the log")
    assert failed() == ["server_unavailable"] * 2
