"""Probes ask all the time, and not by a name: what they get is logged when it is new, and once a minute."""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path

import httpx
import msgspec
import pytest

from launcher.client.async_client import AsyncClient
from launcher.client.results import Result
from launcher.http.probes import AGAIN_S, Probes
from launcher.messages.limits import Limits
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run
from tests.launcher.http.http_requests import NOWHERE
from tests.launcher.http_servers import PATH, PROMPT, http_server, http_server_without_engine

PROBES = (  # what comes after the method, and its headers
    ("HTTP/1.0", ""),  # HAProxy
    ("HTTP/1.1", "Host:\r\n"),
    ("HTTP/1.1", "Host: 10.42.0.17:30000\r\nUser-Agent: kube-probe/1.33\r\nAccept: */*\r\nConnection: close\r\n"),
    ("HTTP/1.1", "Host: [2001:db8::1]:30000\r\n"),
    ("HTTP/1.1", "HOST: images.Example.\r\n"),
    ("HTTP/1.1", "Host: not a host@all\r\n"),
)


async def statuses(address: httpx.URL, requests: list[str]) -> list[int]:
    """What each is answered, all at once, on connections of their own."""

    async def ask(request: str) -> int:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(f"{request}\r\n".encode())
        status = int((await reader.readline()).split()[1])
        writer.close()
        return status

    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.gather(*map(ask, requests))


def test_probes_are_answered_whatever_the_host_and_nothing_else_is() -> None:
    async def expect(client: httpx.AsyncClient, status: int, *starts: str) -> None:
        asked = [f"{start} {http}\r\n{fields}" for start in starts for http, fields in PROBES]
        assert set(await statuses(client.base_url, asked)) == {status}, starts

    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            await expect(client, 200, "GET /health", "HEAD /health", "OPTIONS /health", "GET /metrics")
            await expect(client, 503, "GET /ready", "HEAD /ready", "OPTIONS /ready")
            await expect(client, 403, "GET /v1/models", "GET /", "GET /healthy", "OPTIONS /", f"OPTIONS {PATH}")
            post = "HTTP/1.0\r\nContent-Length: 0\r\n"
            assert await statuses(client.base_url, [f"POST /health {post}", f"POST {PATH} {post}"]) == [403, 403]
        async with http_server_without_engine(NOWHERE, api_keys=("secret",)) as client:
            await expect(client, 200, "GET /health")
            await expect(client, 503, "GET /ready")
            await expect(client, 403, "GET /metrics")

    run(test())


def test_probes_are_answered_under_load_as_they_are_without(run_folder: Path) -> None:
    async def test() -> None:
        limits = Limits(max_queue=1)
        async with (
            fake_engine(run_folder, limits=limits) as fakes,
            http_server(fakes.address, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            fakes.ranks[0].hold = True
            body = {"prompt": PROMPT, "steps": 2}
            posts = [group.create_task(client.post(PATH, json=body)) for _ in range(40)]
            await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)  # one that was refused
            asked = [f"GET {path} HTTP/1.0\r\n" for path in ("/health", "/ready", "/metrics")]
            assert set(await statuses(client.base_url, asked * 10)) == {200}
            fakes.ranks[0].resume()
            assert {(await post).status_code for post in posts} == {200, 429}

    run(test())


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


def test_a_probe_that_is_refused_all_the_time_is_a_line_and_a_count(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.http.probes.AGAIN_S", math.inf)  # however long this takes

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


def test_what_routers_compare_is_the_same_wherever_they_ask(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            AsyncClient(fakes.address) as rpc,
            http_server(fakes.address) as client,
        ):
            (rank,) = fakes.ranks

            async def load() -> tuple[float, float, float]:
                """Requests that wait and that run, and the seconds of work, which stand still while the rank holds."""
                ready, status = (await client.get("/ready")).json(), (await client.get("/v1/status")).json()
                told, text = msgspec.structs.asdict(await rpc.status()), (await client.get("/metrics")).text
                names = {"waiting": "requests_waiting", "running": "requests_running", "backlog_s": "backlog_seconds"}
                gauges = {name: float(text.split(f"\nkrea2_{names[name]} ")[1].split()[0]) for name in names}
                for answer in (ready, status, told):
                    assert {name: math.nan if answer[name] is None else answer[name] for name in names} == (
                        pytest.approx(gauges, nan_ok=True)
                    )
                return gauges["waiting"], gauges["running"], gauges["backlog_s"]

            async def held(count: int) -> list[asyncio.Task[Result]]:
                """Requests that have come to a rank that holds."""
                rank.hold = True
                calls = [asyncio.create_task(rpc.generate(PROMPT, steps=4)) for _ in range(count)]
                async with asyncio.timeout(DEADLINE_S):
                    while (status := await rpc.status()).waiting + status.running < count:
                        pass
                    while (await rpc.status()).backlog_s != (await rpc.status()).backlog_s:
                        pass  # the step should be done
                return calls

            assert await load() == (0, 0, 0)
            calls = await held(1)
            assert await load() == (0, 1, pytest.approx(math.nan, nan_ok=True))  # no step has been measured
            rank.resume()
            await asyncio.gather(*calls)
            assert await load() == (0, 0, 0)
            calls = await held(3)
            waiting, running, backlog_s = await load()
            assert waiting + running == 3
            assert 1 < backlog_s < 60
            rank.resume()
            await asyncio.gather(*calls)
            assert await load() == (0, 0, 0)

    run(test())


def test_a_server_that_drains_is_not_ready_at_once_ends_what_has_begun_and_refuses_the_rest(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder, drain_s=DEADLINE_S) as fakes,
            http_server(fakes.address) as client,
        ):

            async def draw(steps: int = 2) -> httpx.Response:
                return await client.post(PATH, json={"prompt": PROMPT, "steps": steps, "response_format": "b64_json"})

            (rank,) = fakes.ranks
            rank.hold = True
            running = asyncio.create_task(draw())
            await rank.has_steps(2)
            waiting = asyncio.create_task(draw())
            async with asyncio.timeout(DEADLINE_S):
                while (await client.get("/ready")).json()["waiting"] != 1:
                    pass
            fakes.stop.set()
            refused = [await client.get("/ready"), await waiting, await draw()]
            for answer in refused:
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_unavailable")
                assert "is being stopped" in answer.json()["error"]["message"]
                assert int(answer.headers["Retry-After"]) >= 1
            assert (await client.get("/health")).status_code == 200
            assert "\nkrea2_ready 0.0\n" in (await client.get("/metrics")).text
            rank.resume()
            assert (await running).status_code == 200
            async with asyncio.timeout(DEADLINE_S):
                await fakes.served

    run(test())
