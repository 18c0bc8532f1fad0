"""Probes ask all the time: what they get is logged when it is new, and once a minute."""

from __future__ import annotations

import logging

import pytest

from launcher.http.probes import AGAIN_S, Probes
from tests.launcher.fake_ranks import run
from tests.launcher.http.http_requests import NOWHERE
from tests.launcher.http_servers import http_server_without_engine


def test_a_fault_is_logged_when_it_is_new_and_then_once_a_minute_with_a_count() -> None:
    probes = Probes()

    def asked(now: float, status: int = 503) -> int:
        return probes.count("/ready", status, now, failed=status >= 400)

    assert asked(0.0, 200) == 0
    assert [asked(second) for second in range(1, int(AGAIN_S))] == [1, *[0] * 58]
    assert [asked(AGAIN_S + second) for second in range(3)] == [0, 60, 0]
    assert asked(70.0, 200) == 0
    assert asked(71.0) == 2  # it is news again, and the one that was left out is counted
    assert asked(71.5) == 0


def test_routes_and_kinds_of_faults_are_told_apart_and_a_strange_prober_stays_one_a_minute() -> None:
    probes = Probes()
    assert probes.count("/ready", 503, 0.0, failed=True) == 1
    assert probes.count("/metrics", 503, 0.0, failed=True) == 1
    assert probes.count("/ready", 0, 0.0, failed=True) == 1
    assert [probes.count("/metrics", 401, float(second), failed=True) for second in range(3)] == [1, 0, 0]
    assert probes.count("/metrics", 200, 3.0, failed=False) == 0
    assert probes.count("/metrics", 401, 4.0, failed=True) == 0


def test_a_probe_that_is_refused_all_the_time_is_a_line_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            for _ in range(5):
                assert (await client.get("/ready")).status_code == 503
                assert (await client.get("/health")).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert 'krea2_http_requests_total{method="GET",route="/ready",status="503"} 5.0' in metrics

    with caplog.at_level(logging.INFO, "krea2"):
        run(test())
    (record,) = (record for record in caplog.records if record.getMessage() == "http")
    fields = vars(record)["fields"]
    assert (fields["path"], fields["status"], fields["error"]) == ("/ready", 503, "server_unavailable")
