"""A cluster on one machine from its start to its end, whatever ends it, with engines that draw nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable

import psutil
import pytest

from tests.launcher.processes import PATIENCE_S, Marked, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("_own_network")]


def test_a_replica_that_does_not_start_ends_it_with_its_own_error(marked: Marked) -> None:
    process = _start(marked, fail="/models/vae.safetensors: is damaged")
    assert _wait(process) == (2, ["error: /models/vae.safetensors: is damaged"])
    marked.expect_nothing_left()


def _stop_twice(process: subprocess.Popen[str], _: Marked) -> None:
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)


def _stop_where_serve_hangs(process: subprocess.Popen[str], marked: Marked) -> None:
    _named(marked, "ray::ServeController").suspend()
    process.terminate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda process, _: process.terminate(), 143),
        (_stop_twice, 130),
        (_stop_where_serve_hangs, 143),
        (lambda process, _: process.kill(), -9),
        (lambda _, marked: _only(marked, "_cluster").kill(), 1),
        (lambda _, marked: _named(marked, "raylet").kill(), 1),
        (lambda _, marked: _named(marked, "gcs_server").kill(), 1),
    ],
    ids=[
        "stopped",
        "stopped twice",
        "stopped where Serve hangs",
        "killed",
        "its keeper killed",
        "raylet killed",
        "gcs killed",
    ],
)
def test_nothing_outlives_it_whatever_ends_it(
    marked: Marked, end: Callable[[subprocess.Popen[str], Marked], None], code: int
) -> None:
    process = _start(marked, drain_s=5.0)
    url = _serving(process)[0]
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        assert answer.read() == b"drawn"
    assert {each.nice() for each in marked.alive()} == {0}
    assert marked.alive("_left")
    end(process, marked)
    assert _wait(process)[0] == code
    marked.expect_nothing_left()


@pytest.mark.slow
def test_two_run_side_by_side_and_neither_joins_the_other(marked: Marked) -> None:
    processes = [_start(marked) for _ in range(2)]
    urls = {_serving(process)[0] for process in processes}
    assert len(urls) == 2
    tokens = {each.environ().get("RAY_AUTH_TOKEN") for each in marked.alive() if each.name() == "raylet"}
    assert len(tokens) == 2
    assert None not in tokens
    for process in processes:
        process.terminate()
        assert _wait(process)[0] == 143
    marked.expect_nothing_left()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small /dev/shm")
def test_64_kb_of_shared_memory_are_enough(marked: Marked) -> None:
    mount = 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"'
    process = marked.start("unshare", "--mount", "sh", "-c", mount, "sh", *_command())
    with urllib.request.urlopen(_serving(process)[0], timeout=PATIENCE_S) as answer:
        assert answer.read() == b"drawn"
    process.terminate()
    assert _wait(process)[0] == 143
    marked.expect_nothing_left()


def _command(**args: object) -> list[str]:
    return [sys.executable, "-m", "tests.launcher.ray.one_machine.stand_in", json.dumps(args)]


def _start(marked: Marked, **args: object) -> subprocess.Popen[str]:
    return marked.start(*_command(**args))


def _serving(process: subprocess.Popen[str]) -> list[str]:
    """Its address, and the ports that are open on every interface."""
    assert process.stdout is not None
    word, *said = process.stdout.readline().split() or [""]
    assert word == "serving", process.communicate(timeout=PATIENCE_S)
    return said


def _wait(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    stdout, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, stdout.splitlines()


def _only(marked: Marked, role: str) -> psutil.Process:
    (found,) = marked.alive(role)
    return found


def _named(marked: Marked, name: str) -> psutil.Process:
    found: list[psutil.Process] = []
    wait_until(lambda: bool(found.extend(each for each in marked.alive() if each.name() == name) or found), name)
    return found[0]
