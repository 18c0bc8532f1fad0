"""What pairs of requests say of the cluster's overhead."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from bench.cluster import cases, servers
from bench.cluster.__main__ import main
from bench.cluster.cases import CASES, Case
from bench.cluster.overhead import LEAST, WARM_UP, Difference, interval_of_median, measure
from bench.serve.traffic import RequestFailed
from tests.launcher.http_servers import in_a_thread


class Clock:
    """One that goes on when it is told."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        patch.setattr("bench.cluster.overhead.time.perf_counter", lambda: self.now)


def clients() -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
    return httpx.AsyncClient(base_url="http://serve"), httpx.AsyncClient(base_url="http://cluster")


def case_of(clock: Clock, cluster_s: float, engine_s: float, asked: list[tuple[str, int]], bar_s: float = 0.02) -> Case:
    """Requests that take 0.1 s of the engine and 0.05 s besides of `krea2 serve`, and so much of the cluster."""

    async def ask(client: httpx.AsyncClient, number: int) -> float:
        asked.append((client.base_url.host, number))
        own_s = engine_s if client.base_url.host == "cluster" else 0.1
        clock.now += own_s + (cluster_s if client.base_url.host == "cluster" else 0.05)
        return own_s

    return Case("case", "a case", ask, 1.0, bar_s)


def test_differences_are_paired_in_an_order_that_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    case = case_of(Clock(monkeypatch), 0.06, 0.4, asked)
    overhead = asyncio.run(measure(case, *clients(), pairs=20))
    assert overhead.serve.count == 20
    assert (overhead.serve.median, overhead.cluster.median) == pytest.approx((0.15, 0.46))
    assert overhead.all.median == pytest.approx(0.31)
    assert overhead.outside is not None
    assert overhead.outside.median == overhead.added.median == pytest.approx(0.01)
    assert [number for _, number in asked] == [number for number in range(WARM_UP + 20) for _ in range(2)]
    firsts = {host for host, _ in asked[::2]}
    assert firsts == {"serve", "cluster"}


@pytest.mark.parametrize(
    ("cluster_s", "engine_s", "missed"),
    [
        (0.069, 0.1, None),
        (0.071, 0.1, "21.0 ms more, where at most 20 ms were to be"),
        (0.05, 0.109, None),
        (0.05, 0.2, "the engine took 2.00 times as long itself"),
    ],
)
def test_a_bar_is_missed_outside_the_engine_or_by_an_engine_that_is_starved(
    monkeypatch: pytest.MonkeyPatch, cluster_s: float, engine_s: float, missed: str | None
) -> None:
    case = case_of(Clock(monkeypatch), cluster_s, engine_s, [])
    assert asyncio.run(measure(case, *clients(), pairs=1)).missed == missed


def test_a_request_that_fails_ends_it_and_says_where() -> None:
    async def ask(client: httpx.AsyncClient, _: int) -> float:
        if client.base_url.host == "cluster":
            raise httpx.ReadError("")
        return 1.0

    with pytest.raises(RequestFailed, match="cluster, a case: ReadError"):
        asyncio.run(measure(Case("case", "a case", ask, 1.0), *clients(), pairs=1))


def test_the_interval_holds_the_median_as_often_as_it_says_and_is_no_wider_than_that() -> None:
    """Of 6 values even the whole range holds it with 1 − 2 / 2⁶ alone; tables of the sign test have the rest."""
    assert [interval_of_median(count) for count in (6, 8, 9, 12, 20, 40)] == [0, 0, 1, 2, 5, 13]
    random = Random(0)
    held = 0
    for _ in range(1000):
        difference = Difference.of([random.expovariate(1.0) for _ in range(20)])
        held += difference.low <= 0.6931 <= difference.high
    assert 0.95 <= held / 1000 <= 0.97  # 0.9586 by arithmetic


# ---- against servers


@pytest.fixture
def url(run_folder: Path) -> Iterator[str]:
    with in_a_thread(run_folder) as url:
        yield url


def test_all_cases_are_asked_of_servers_that_run(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ranks that compute nothing, whose engine's own times say nothing."""
    monkeypatch.setattr("bench.cluster.overhead.MOST_ENGINE", float("inf"))
    monkeypatch.setattr(cases, "LARGE", 256)
    monkeypatch.setattr(cases, "_noise", lambda side, _: cases._png(cases.PIL.new("RGB", (side, side))))
    file = tmp_path / "results.jsonl"
    for case in CASES.values():
        monkeypatch.setitem(CASES, case.name, Case(case.name, case.what, case.ask, case.share, 60.0))
    assert main(["--url", url, "--cluster-url", url, "--pairs", "1", "--json", str(file)]) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["case"] for line in lines] == list(CASES)
    assert {line["serve_s"]["count"] for line in lines} == {LEAST}
    assert {line["case"] for line in lines if line["outside_s"] is None} == {"health", "at-once"}
    assert capsys.readouterr().out.count(": held") == len(CASES)
    monkeypatch.setitem(CASES, "picture", Case("picture", "a picture", CASES["picture"].ask, 1.0, -60.0))
    assert main(["--url", url, "--cluster-url", url, "--pairs", "1", "--cases", "picture"]) == 1
    assert "missed: a picture: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cases", "picture,video"], "cases must be comma-separated, of health, picture"),
        (["--url", "http://127.0.0.1:1"], "give both"),
        (["--url", "http://127.0.0.1:1", "--cluster-url", "http://127.0.0.1:1", "--control"], "without --url"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_a_server_that_does_not_answer_ends_it_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    nobody = "http://127.0.0.1:9"
    assert main(["--url", nobody, "--cluster-url", nobody, "--cases", "health"]) == 1
    assert "GET /health" in capsys.readouterr().err


def test_a_server_that_ends_at_once_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(servers.ServerFailed, match="ended before"), servers.start_serve(["--no-such-option"]):
        pass


def test_it_goes_on_in_a_network_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(servers, "is_own_network", lambda: False)
    monkeypatch.setattr(servers.os, "execv", lambda _, words: ran.append(words))
    servers.enter_network(["--pairs", "3"])
    assert ran[0][1:3] == ["-m", "tests.network.own_network"]
    assert ran[0][4:] == ["-m", "bench.cluster", "--pairs", "3"]
