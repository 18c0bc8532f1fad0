"""The simulation of a cluster: its replicas take the time that they should, and our router is no worse than others'."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from statistics import mean

import pytest

from bench.cluster.simulation.arrivals import SHAPES, arrivals, bursty
from bench.cluster.simulation.cluster import Outcome, Plan
from bench.cluster.simulation.command import main, simulate
from bench.cluster.simulation.ramp import follow
from bench.cluster.simulation.replicas import Replica, alone_s, costs, mean_busy_s
from engine.scheduling.cost import Work
from launcher.ray.scaling import Rule

SMALL = Plan(hosts=4, ingresses=8)


class Now:
    """A calendar in which what is noted happens when it is run."""

    def __init__(self) -> None:
        self.now, self.noted = 0.0, list[tuple[float, int, object]]()

    def after(self, seconds: float, happening: object) -> None:
        self.noted.append((self.now + max(0.0, seconds), len(self.noted), happening))

    def run(self) -> None:
        done = set[int]()
        while pending := [noted for noted in self.noted if noted[1] not in done]:
            self.now, number, happening = min(pending, key=lambda noted: noted[:2])
            done.add(number)
            assert callable(happening)
            happening()


def test_a_step_takes_what_the_documents_say_that_the_model_predicts() -> None:
    """docs/several-gpus.md: tp4, 53.25 ms for an image of 1024 × 1024 with 64 text tokens."""
    assert costs(4).denoise_s(Work.of([4096 + 64])) == pytest.approx(53.25e-3, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_request_alone_takes_what_is_reckoned_for_it(shape: object) -> None:
    assert shape in SHAPES
    found = SHAPES[SHAPES.index(shape)]  # type: ignore[arg-type]
    calendar, ends = Now(), list[float]()
    replica = Replica("one", calendar, Random(0), tp=4, queue=8)
    estimated_s = replica.add(0, found, lambda: ends.append(calendar.now))
    calendar.run()
    assert estimated_s is not None
    assert ends == [pytest.approx(alone_s(found, 4), rel=0.2)]
    assert ends == [pytest.approx(estimated_s, rel=0.2)]
    assert replica.ongoing == 0
    assert replica.backlog_s == 0.0


def test_arrivals_are_the_same_for_the_same_seed_and_bursts_have_the_mean_that_is_asked_for() -> None:
    def drawn(seed: int) -> list[object]:
        return list(arrivals(Random(seed), lambda _: 5.0, 5.0, seconds=100, ingresses=4))

    assert drawn(1) == drawn(1) != drawn(2)
    rate, most = bursty(Random(3), 10.0, 4000)
    times = [rate(float(at)) for at in range(4000)]
    assert max(times) == most
    assert mean(times) == pytest.approx(10.0, rel=0.15)


def test_with_stale_statistics_ours_waits_less_at_p99_than_two_choices_and_least_in_flight() -> None:
    """Nothing in it is by chance: the seed gives the same on every machine."""

    def p99(router: str) -> float:
        return simulate(SMALL, "poisson", 0.8, router, seconds=20, seed=0).wait_s(0.99, since=4)

    ours = p99("ours")
    assert ours < 0.9 * p99("two")
    assert ours < 0.9 * p99("in-flight")


def test_hosts_that_die_lose_no_request_and_get_some_again_when_they_are_back() -> None:
    plan = Plan(hosts=4, ingresses=4, deaths=((4.0, 8.0, 0.25),))
    outcome = simulate(plan, "deaths", 0.6, "ours", seconds=14, seed=0)
    without = simulate(Plan(hosts=4, ingresses=4), "poisson", 0.6, "ours", seconds=14, seed=0)
    assert outcome.replayed > 0
    assert outcome.lost == outcome.refused == 0
    assert len(outcome.waits) == len(without.waits)
    assert min(outcome.busy_s) > 1.0


def test_a_full_queue_refuses_after_a_second_replica_has() -> None:
    outcome: Outcome = simulate(Plan(hosts=1, ingresses=1, queue=4), "poisson", 1.8, "ours", seconds=10, seed=0)
    assert outcome.refused > 0
    assert outcome.waits


def test_the_autoscaler_follows_a_load_that_grows_without_going_to_and_fro() -> None:
    course = follow(0, mean_busy_s(4) * 12, seconds=150, rule=Rule(1, 50))
    assert course.refused == 0
    assert 3 <= course.most <= 20
    assert course.turns == 0


def test_the_command_prints_a_table_and_writes_a_line_a_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    words = "--hosts 2 --ingresses 2 --seconds 4 --seeds 1 --loads 0.5 --cases poisson,deaths --routers ours,two"
    assert main([*words.split(), "--json", str(file)]) == 0
    table = capsys.readouterr().out
    assert table.count("poisson") == 2
    assert table.count("before, during, after") == 2
    results = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(result["case"], result["router"]) for result in results] == [
        ("poisson", "ours"),
        ("poisson", "two"),
        ("deaths", "ours"),
        ("deaths", "two"),
    ]
    assert all(result["benchmark"] == "cluster_simulation" for result in results)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tp 3", "tp must be 1, 2 or 4"),
        ("--gpus 6 --tp 4", "of which a host's GPUs are a multiple"),
        ("--loads 0,1", "loads must be"),
        ("--loads high", "loads must be"),
        ("--cases rain", "cases must be"),
    ],
)
def test_what_cannot_be_simulated_is_refused(capsys: pytest.CaptureFixture[str], words: str, said: str) -> None:
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err
