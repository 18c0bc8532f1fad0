"""Engines that die while eight requests are in flight: all get their pictures, once, and the right ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import psutil
import pytest

from tests.launcher.processes import wait_until
from tests.launcher.ray.cluster.flight import Flight, difference
from tests.launcher.ray.servers import REPLICAS, Served

pytestmark = pytest.mark.cluster
ENGINE, FRONT_END, RANK = ("ray::ServeReplica:krea2:engine",), ("launcher", "_frontend"), ("launcher", "_rank")
CONTROLLER = ("ray::ServeController",)
MOST_DIFFERENCE = 1  # of 255, between pictures whose steps were shared with others
Victims = tuple[str, ...]


def kill_one(server: Served, victims: Victims) -> Callable[[], None]:
    """Kill the oldest of these processes; what it has started must go by itself."""

    def kill() -> None:
        process = server.processes(*victims)[0]
        children = process.children(recursive=True)
        process.kill()
        if victims != CONTROLLER:
            wait_until(lambda: not any(map(runs, children)), "the end of what it has started")

    return kill


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_engines(server: Served, count: int = REPLICAS) -> None:
    """Wait until all engines answer: each has metrics of its own."""

    def answer() -> bool:
        lines = server.ask("GET", "/metrics").text.splitlines()
        return len({line for line in lines if line.startswith("krea2_requests_waiting{")}) == count

    wait_until(answer, f"{count} engines")
    server.wait_for_rest()


def test_pictures_in_flight_are_those_of_krea2_serve(clustered: Served, calm: list[list[np.ndarray]]) -> None:
    flight = Flight(clustered)
    assert difference(flight.run(), calm) <= MOST_DIFFERENCE
    assert {*flight.attempts} == {1}


@pytest.mark.parametrize("victims", [ENGINE, FRONT_END], ids=["engine", "front-end"])
def test_nothing_is_lost_doubled_or_wrong(clustered: Served, calm: list[list[np.ndarray]], victims: Victims) -> None:
    wait_for_engines(clustered)
    flight = Flight(clustered)
    assert difference(flight.run(kill_one(clustered, victims)), calm) <= MOST_DIFFERENCE
    assert flight.answered == len(flight.requests)
    wait_for_engines(clustered)
