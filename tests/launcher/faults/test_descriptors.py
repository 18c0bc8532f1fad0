"""A server whose limit of open files is 256, and more connections than that: what runs goes on."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from launcher.client.client import Client
from launcher.messages.keys import make_keys
from tests.launcher.processes import PATIENCE_S, Marked, new_marked, temporary_folder, wait_until

pytestmark = [pytest.mark.slow]
LIMIT = 256
PROMPT = "a red circle on a blue background"


class Server(NamedTuple):
    """A server, and where it listens."""

    process: psutil.Process
    marked: Marked
    http: str
    rpc: str
    key: Path | None

    def client(self, patience_s: float = PATIENCE_S) -> Client:
        return Client(self.rpc, connect_timeout_s=patience_s, key=self.key)

    def connect(self) -> socket.socket:
        """A connection that says nothing, whether the server lets it in or not."""
        if self.rpc.startswith("ipc"):
            raw = socket.socket(socket.AF_UNIX)
            raw.setblocking(False)
            with suppress(OSError):  # that the queue is full
                raw.connect(self.rpc.removeprefix("ipc://"))
        else:
            raw = socket.socket()
            raw.setblocking(False)
            raw.connect_ex(("127.0.0.1", int(self.rpc.rpartition(":")[2])))
        return raw

    def metrics(self) -> bytes:
        return httpx.get(f"{self.http}/metrics", timeout=PATIENCE_S).content

    def connections(self) -> int:
        """How many connections over RPC there are, 0 while the HTTP process does not reach the front-end."""
        found = re.search(rb"^krea2_rpc_connections (\d+)", self.metrics(), re.MULTILINE)
        return int(found[1]) if found else 0

    def is_alive(self) -> bool:
        return httpx.get(f"{self.http}/health", timeout=PATIENCE_S).status_code == 200

    def is_ready(self) -> bool:
        return httpx.get(f"{self.http}/ready", timeout=PATIENCE_S).status_code == 200


@contextmanager
def serve(folder: Path, kind: str, *, hollow: bool = False) -> Iterator[Server]:
    marked = new_marked(folder)
    if hollow:
        marked.use_hollow_ranks()
    key = make_keys(folder / "keys", "client") if kind == "tcp" else None
    rpc = "tcp://127.0.0.1:0" if kind == "tcp" else f"ipc://{folder}/rpc"
    options = ["--device", "cpu", "--port", "0", "--rpc", rpc]
    options += ["--rpc-keys", str(folder / "keys")] if key is not None else []
    try:
        limited = ("sh", "-c", f'ulimit -n {LIMIT} && exec "$@"', "sh")  # not in a fork of this process with threads
        command = (sys.executable, "-m", "launcher", "serve", *options)
        process = marked.start(*limited, *command, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert all(lines), "the server ended before it said where it listens"
        http, address = (line.strip().partition(": ")[2] for line in lines)
        yield Server(psutil.Process(process.pid), marked, http, address, key)
        assert process.poll() is None, "the server has ended"
    finally:
        marked.kill()


@pytest.mark.parametrize(("kind", "count"), [("tcp", 323), ("ipc", 1000)])
def test_what_runs_goes_on_whatever_connects_and_a_rank_and_the_http_process_are_replaced(
    kind: str, count: int
) -> None:
    with temporary_folder() as name, serve(Path(name), kind) as server, ThreadPoolExecutor(4) as threads:
        wait_until(server.is_ready, "that images can be made")
        with server.client() as client:
            first = client.generate(PROMPT, seed=5, width=128, height=128, steps=200)
            calls = [
                threads.submit(client.generate, PROMPT, seed=5, width=128, height=128, steps=200) for _ in range(3)
            ]
            wait_until(lambda: b"krea2_requests_running 3.0" in server.metrics(), "the first steps")
            rank = server.marked.rank(0)
            rank.suspend()  # so that no image is done when it dies
            idle = [server.connect() for _ in range(count)]
            wait_until(lambda: server.process.num_fds() > LIMIT // 2, "connections")
            assert server.is_alive()
            rank.kill()
            results = [call.result(PATIENCE_S) for call in calls]
            assert {result.attempt for result in results} >= {2}
            assert all(result.images[0].tobytes() == first.images[0].tobytes() for result in results)
            (http,) = server.marked.alive("_http")
            http.kill()  # the next one gets in, though nobody else does
            wait_until(lambda: [other for other in server.marked.alive("_http") if other.pid != http.pid] != [], "it")
            wait_until(server.is_ready, "that the HTTP process reaches the front-end")
            assert server.process.num_fds() < LIMIT - 16
            for raw in idle:
                raw.close()
            with server.client() as another:
                assert another.generate(PROMPT, seed=5, width=64, height=64, steps=2).images
            wait_until(lambda: server.connections() == 1, "the end of the idle ones")


def test_connections_without_a_key_keep_nobody_out_for_long() -> None:
    with temporary_folder() as name, serve(Path(name), "tcp", hollow=True) as server:
        idle = [server.connect() for _ in range(100)]
        wait_until(lambda: server.connections() == 61, "as many connections as there is room for")
        with server.client() as client:
            assert client.generate(PROMPT, steps=1).images
        for raw in idle:
            raw.close()


def test_descriptors_are_flat_over_restarts_and_floods() -> None:
    with temporary_folder() as name, serve(Path(name), "ipc", hollow=True) as server, server.client() as client:
        counts = []
        for restart in range(1, 11):
            idle = [server.connect() for _ in range(200)]
            server.marked.rank(0).kill()
            assert client.generate(PROMPT, steps=1).images
            for raw in idle:
                raw.close()
            wait_until(lambda: server.connections() == 1, "the end of the idle ones")
            wait_until(lambda: b"krea2_restarts_total %d" % restart in server.metrics(), "a restart")  # noqa: B023
            wait_until(lambda: len(server.marked.alive("_rank")) == 1, "one rank")
            if restart > 3:  # zmq closes its ends of what was closed a moment later
                wait_until(lambda: server.process.num_fds() <= max(counts[:3]) + 2, f"the end of files beyond {counts}")
            counts.append(server.process.num_fds())
