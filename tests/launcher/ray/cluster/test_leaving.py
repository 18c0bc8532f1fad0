"""Replicas that leave while requests wait: what they have begun ends there, and what they have not goes elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from tests.launcher.processes import wait_until
from tests.launcher.ray.cluster.conductor import conduct
from tests.launcher.ray.cluster.flight import Flight, difference
from tests.launcher.ray.cluster.test_deaths import MOST_DIFFERENCE, wait_for_engines
from tests.launcher.ray.servers import REPLICAS, Served

pytestmark = pytest.mark.cluster


def test_an_engine_leaves_and_another_comes_and_nothing_is_lost(
    clustered: Served, calm: list[list[np.ndarray]]
) -> None:
    wait_for_engines(clustered)
    with conduct(clustered) as conductor:
        wait_until(lambda: conductor.replicas() == {"RUNNING": REPLICAS}, "the end of those that died before")
        flight = Flight(clustered)
        found = flight.run(lambda: wait_until_deployed(conductor.deploy(min_replicas=1, max_replicas=1)))
        assert difference(found, calm) <= MOST_DIFFERENCE
        assert {*flight.attempts} == {1}  # what was begun ended where it was
        wait_until(lambda: conductor.replicas() == {"RUNNING": 1}, "the end of the one that leaves")
        assert len(clustered.processes("launcher", "_frontend")) == 1
        conductor.deploy()
    wait_for_engines(clustered)


def wait_until_deployed(states: dict[str, int]) -> None:
    assert states["RUNNING"] >= 1
