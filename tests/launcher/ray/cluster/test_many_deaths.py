"""The same at length: twenty deaths, that of Serve's controller, updates under load, bursts, and ends under load."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.launcher.http_servers import PATH
from tests.launcher.processes import PATIENCE_S, wait_until
from tests.launcher.ray.both.sent import BODY, images
from tests.launcher.ray.cluster.conductor import conduct
from tests.launcher.ray.cluster.flight import REQUESTS, Flight, difference
from tests.launcher.ray.cluster.test_deaths import (
    CONTROLLER,
    ENGINE,
    FRONT_END,
    MOST_DIFFERENCE,
    RANK,
    kill_one,
    wait_for_engines,
)
from tests.launcher.ray.servers import MAX_QUEUE, REPLICAS, Served, cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROUNDS = 20
UPDATES = 2


@pytest.mark.timeout(1800)
def test_twenty_deaths(clustered: Served, calm: list[list[np.ndarray]]) -> None:
    rounds = [(ENGINE, FRONT_END, RANK)[number % 3] for number in range(ROUNDS)]
    random.Random(0).shuffle(rounds)
    for victims in rounds:
        wait_for_engines(clustered)
        flight = Flight(clustered)
        assert difference(flight.run(kill_one(clustered, victims)), calm) <= MOST_DIFFERENCE, victims
        assert flight.answered == len(REQUESTS)
    wait_for_engines(clustered)
    assert len(clustered.processes(*FRONT_END)) == len(clustered.processes(*RANK)) == REPLICAS


def test_requests_do_not_need_the_controller(clustered: Served, calm: list[list[np.ndarray]]) -> None:
    wait_for_engines(clustered)
    (killed,) = clustered.processes(*CONTROLLER)
    flight = Flight(clustered)
    assert difference(flight.run(kill_one(clustered, CONTROLLER)), calm) <= MOST_DIFFERENCE
    assert {*flight.attempts} == {1}
    wait_until(lambda: [each.pid for each in clustered.processes(*CONTROLLER)] not in ([], [killed.pid]), "another")
    with conduct(clustered) as conductor:
        wait_until(lambda: conductor.replicas() == {"RUNNING": REPLICAS}, "its knowledge of the replicas")


def test_updates_under_load_are_seen_by_nobody(clustered: Served) -> None:
    wait_for_engines(clustered)
    expected = {seed: images(clustered.post(PATH, BODY | {"seed": seed, "steps": 8}))[0] for seed in range(4)}
    over, counts = threading.Event(), Counter[int]()

    def keep_asking(seed: int) -> None:
        while not over.is_set():
            answer = clustered.post(PATH, BODY | {"seed": seed, "steps": 8})
            counts[answer.status_code] += 1
            assert np.abs(images(answer)[0].astype(int) - expected[seed]).max() <= MOST_DIFFERENCE

    with conduct(clustered) as conductor, ThreadPoolExecutor(len(expected)) as pool:
        asking = [pool.submit(keep_asking, seed) for seed in expected]
        try:
            for update in range(1, UPDATES + 1):
                before = {process.pid for process in clustered.processes(*FRONT_END)}
                conductor.deploy(limits=conductor.args["limits"] | {"max_steps": 200 - update}, max_surge_percent=50)
                wait_until(lambda: conductor.replicas() == {"RUNNING": REPLICAS}, "the end of those of before")
                after = {process.pid for process in clustered.processes(*FRONT_END)}
                assert not before & after
                settings = clustered.ask("GET", "/v1/settings").json()
                assert settings["limits"]["max_steps"] == 200 - update
        finally:
            over.set()
        for each in asking:
            each.result(PATIENCE_S)
        conductor.deploy()
    assert {*counts} == {200}
    assert counts[200] > 10 * UPDATES
    wait_for_engines(clustered)


def test_a_burst_is_drawn_or_told_when_to_come_again(clustered: Served) -> None:
    wait_for_engines(clustered)
    count = 4 * REPLICAS * MAX_QUEUE
    bodies = [BODY | {"seed": seed, "steps": 8} for seed in range(count)]
    ranks = clustered.marked.alive("_rank")
    with ThreadPoolExecutor(count) as pool:
        for rank in ranks:  # or they are done with some before others are there
            rank.suspend()
        try:
            sent = [pool.submit(clustered.post, PATH, body) for body in bodies]
            wait_until(lambda: sum(each.done() for each in sent) + sum(clustered.load()) >= count, "the arrival of all")
        finally:
            for rank in ranks:
                rank.resume()
        answers = [each.result(PATIENCE_S) for each in sent]
    statuses = Counter(answer.status_code for answer in answers)
    assert {*statuses} == {200, 429}, statuses
    assert statuses[200] > REPLICAS * MAX_QUEUE
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "queue_full"
    for seed, answer in list(enumerate(answers))[:: count // 8]:
        if answer.status_code == 200:
            alone = images(clustered.post(PATH, bodies[seed]))[0]
            assert np.abs(images(answer)[0].astype(int) - alone).max() <= MOST_DIFFERENCE
    wait_for_engines(clustered)


def test_what_runs_is_finished_when_the_command_is_stopped(calm: list[list[np.ndarray]]) -> None:
    with cluster("--drain-s", "200", replicas=1) as server:
        flight = Flight(server)

        def stop() -> None:
            wait_until(lambda: sum(server.load()) + flight.answered >= len(REQUESTS), "the arrival of all")
            server.process.send_signal(signal.SIGTERM)

        assert difference(flight.run(stop), calm) <= MOST_DIFFERENCE
        assert server.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
