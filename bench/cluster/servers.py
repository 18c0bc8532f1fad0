"""The two servers that are compared, started for the run in a network of their own, and stopped after it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, Queue
from typing import IO

import httpx

from tests.network.own_network import is_own_network

START_S = 300.0  # until a server says where it listens; and then until it can make images
STOP_S = 60.0  # after SIGTERM


class ServerFailed(Exception):
    """A server that did not start."""


def enter_network(words: Sequence[str]) -> None:
    """Run this benchmark, with these words, again in a network in which there is a loopback alone, unless this is one.
    Where the system does not let this user have one, the process ends with a sentence that says so."""
    if not is_own_network():
        again = [sys.executable, "-m", "bench.cluster", *words]
        os.execv(sys.executable, [sys.executable, "-m", "tests.network.own_network", *again])


@contextmanager
def start_serve(options: Sequence[str]) -> Iterator[str]:
    """`krea2 serve` with these options, until the end of the block: where it listens. Raises `ServerFailed`."""
    with _started("serve", *options, "--port", "0") as url:
        yield url


@contextmanager
def start_cluster(options: Sequence[str]) -> Iterator[str]:
    """`krea2 cluster run` with these options and one replica, as `start_serve`."""
    with _started("cluster", "run", *options, "--replicas", "1", "--port", "0") as url:
        yield url


@contextmanager
def _started(*words: str) -> Iterator[str]:
    """Its stderr is ours."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines: Queue[str] = Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, lines))
    reader.start()
    try:
        url = _address(lines, " ".join(words))
        _wait_until_ready(url)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(STOP_S)


def _read(stdout: IO[str], lines: Queue[str]) -> None:
    for line in stdout:
        lines.put(line)
    lines.put("")


def _address(lines: Queue[str], command: str) -> str:
    try:
        while line := lines.get(timeout=START_S):
            if line.startswith("http: "):
                return line.removeprefix("http: ").strip()
    except Empty:
        raise ServerFailed(f"krea2 {command} did not say within {START_S:g} s where it listens") from None
    raise ServerFailed(f"krea2 {command} ended before it said where it listens")


def _wait_until_ready(url: str) -> None:
    """Its warm-up would take from the other server."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/ready", trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise ServerFailed(f"{url} could make no images within {START_S:g} s")
