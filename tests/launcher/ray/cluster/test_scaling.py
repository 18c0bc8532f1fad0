"""A cluster that gets another engine for the work that waits, and has fewer when there is little left to do."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests.launcher.http_servers import PATH
from tests.launcher.processes import PATIENCE_S, wait_until
from tests.launcher.ray.both.sent import BODY, images
from tests.launcher.ray.cluster.conductor import conduct
from tests.launcher.ray.cluster.test_deaths import FRONT_END, MOST_DIFFERENCE, wait_for_engines
from tests.launcher.ray.servers import Served

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
SCALING = {"min_replicas": 1, "max_replicas": 3, "backlog_target_s": 0.2, "down_delay_s": 4.0}
AT_ONCE = {"max_surge_percent": 100}  # which takes less time
MUCH, LITTLE = BODY | {"size": "64x64", "steps": 150}, BODY | {"size": "64x64"}
CLIENTS = 16  # who have more work waiting than two engines may have, and not so much that one refuses some
SEEDS = 4
REST = 9.0  # of a client who has little to do: times what its last request took


@dataclass
class Asking:
    """Clients who ask one server until they are told to stop. statuses: of all answers."""

    server: Served
    statuses: Counter[int] = field(default_factory=Counter)

    @contextmanager
    def ask(self, clients: int, body: dict[str, Any], rest: float = 0.0) -> Iterator[None]:
        """Have these clients ask, each again after a rest. Fails if a picture differs from what was drawn before."""
        bodies = [body | {"seed": seed} for seed in range(min(clients, SEEDS))]
        expected = [images(self.server.post(PATH, each))[0] for each in bodies]
        over = threading.Event()

        def keep_asking(seed: int) -> None:
            took = 0.0
            while not over.wait(rest * took):
                began = time.monotonic()
                answer = self.server.post(PATH, bodies[seed])
                took = time.monotonic() - began
                self.statuses[answer.status_code] += 1
                found = images(answer)[0].astype(int)
                assert np.abs(found - expected[seed]).max() <= MOST_DIFFERENCE

        with ThreadPoolExecutor(clients) as pool:
            asking = [pool.submit(keep_asking, number % SEEDS) for number in range(clients)]
            try:
                yield
            finally:
                over.set()
        for each in asking:
            each.result(PATIENCE_S)


def test_engines_come_with_the_work_and_go_without_it_and_no_request_is_lost(clustered: Served) -> None:
    wait_for_engines(clustered)
    asking = Asking(clustered)
    with conduct(clustered) as conductor:
        conductor.deploy(**SCALING, **AT_ONCE)
        with asking.ask(1, LITTLE, REST):
            with asking.ask(CLIENTS, MUCH):
                wait_until(lambda: conductor.replicas() == {"RUNNING": 3}, "a third engine")
            wait_until(lambda: conductor.replicas() == {"RUNNING": 1}, "the end of all engines but one")
        assert len(clustered.processes(*FRONT_END)) == 1
        assert {*asking.statuses} == {200}
        assert asking.statuses[200] > CLIENTS
        conductor.deploy(**AT_ONCE)
    wait_for_engines(clustered)
