"""What passes through nginx and HAProxy, and what their checks and Kubernetes' get, as docs/operations.md has them.

The same without proxies is in test_probes.py, test_paths.py and answers/test_event_stream.py, among the fast tests.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from launcher.http.answers import event_stream
from tests.launcher.fake_ranks import DEADLINE_S, Fakes, fake_engine, run
from tests.launcher.http.http_requests import JSON
from tests.launcher.http.proxies.proxies import NAME, URL, checks_of_haproxy, haproxy, nginx, replaced, written
from tests.launcher.http_servers import PATH, PROMPT, http_server, http_server_without_engine

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {"allowed_hosts": (NAME,), "public_url": URL}
BODY = {"prompt": PROMPT, "steps": 3}
SERVER, BELOW = written("nginx")


async def expect_streams_as_they_come(client: httpx.AsyncClient, fakes: Fakes) -> None:
    """One event after the other, though the next is not there yet; and hanging up cancels what runs."""
    rank = fakes.ranks[0]
    for hangs_up in (False, True):
        rank.hold = True
        before = len(rank.steps)
        async with client.stream("POST", PATH, json=BODY | {"stream": True, "progress": True}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            assert await anext(lines) == "event: image_generation.accepted"
            while await anext(lines) != ": waiting":
                pass
            await rank.has_steps(before + 1)
            rank.release()
            while await anext(lines) != "event: image_generation.progress":
                pass
            if not hangs_up:
                rank.resume()
                assert "event: image_generation.completed" in [line async for line in lines]
    watching = await fakes.client()
    async with asyncio.timeout(DEADLINE_S):
        while (status := await watching.status()).waiting + status.running:
            await asyncio.sleep(0.01)
    await watching.close()
    rank.resume()


async def expect_the_usual(client: httpx.AsyncClient, url: str) -> None:
    """The page, errors, links that lead back through the proxy, and many requests on one connection."""
    page = await client.get(f"{url}/", headers={"Accept": "text/html"})
    assert (page.status_code, "<title>Krea 2</title>" in page.text) == (200, True)
    for path in ("/docs", "/docs/", "/page/scripts/app.js", "/v1/models/", "/ready"):
        answer = await client.get(url + path)
        assert (answer.status_code, "location" in answer.headers) == (200, False), path
    for number in range(20):
        refused = await client.post(url + PATH, json=BODY | {"steps": -number}, headers={"Origin": URL})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "steps")
    made = await client.post(url + PATH, json=BODY | {"response_format": "url"}, headers={"Origin": URL})
    link = made.json()["data"][0]["url"]
    assert link.startswith(f"{url}/v1/images/files/")
    assert (await client.get(link)).headers["content-type"] == "image/png"


def test_nginx_passes_on_events_limits_and_paths(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "SILENCE_S", 0.05)
    configuration = replaced(SERVER, {"client_max_body_size 140m;": "client_max_body_size 33m;"})  # which is sent soon

    async def test() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            http_server(fakes.address, **SETTINGS) as server,
            nginx(run_folder, configuration, server.base_url) as client,
        ):
            await expect_the_usual(client, URL)
            await expect_streams_as_they_come(client, fakes)
            for _ in range(5):  # ours, although nginx still sends
                ours = await client.post("/v1/loras", content=b" " * (2**20 + 1), headers=JSON)
                assert (ours.status_code, ours.json()["error"]["code"]) == (413, "body_too_large")
            chat = {"messages": [{"role": "user", "content": text} for text in ("a fox " * 500_000, PROMPT)]}
            assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
            its = await client.post(PATH, content=b" " * (33 * 2**20 + 1))
            assert (its.status_code, its.headers["content-type"]) == (413, "text/html")

    run(test())


@pytest.mark.parametrize("kind", ["taken off", "passed on"])
def test_nginx_serves_everything_below_a_path(run_folder: Path, kind: str) -> None:
    whole, _, rest = SERVER.partition("    location / {\n")
    below = BELOW if kind == "taken off" else "    location /krea2 {\n" + rest.removesuffix("}\n")
    url = f"{URL}/krea2"

    async def test() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            http_server(fakes.address, **SETTINGS | {"public_url": url}) as server,
            nginx(run_folder, f"{whole}{below}}}\n", server.base_url) as client,
        ):
            await expect_the_usual(client, url)

    run(test())


def test_haproxy_finds_the_server_ready_and_passes_on_events(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "SILENCE_S", 0.05)
    (configuration,) = written("haproxy")

    async def until(expected: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while await checks_of_haproxy(run_folder) != [expected]:
                await asyncio.sleep(0.05)

    async def test() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            http_server(fakes.address, **SETTINGS) as server,
            haproxy(run_folder, configuration, server.base_url) as client,
        ):
            await until("L7OK 200")
            await expect_the_usual(client, URL)
            await expect_streams_as_they_come(client, fakes)
        async with (
            http_server_without_engine("ipc:///nonexistent/krea2", **SETTINGS) as server,
            haproxy(run_folder, configuration.replace("GET /ready", "/ready"), server.base_url),  # so with OPTIONS
        ):
            await until("L7STS 503")

    run(test())


def test_haproxy_takes_off_a_path(run_folder: Path) -> None:
    (configuration,) = written("haproxy")
    rule = "    http-request replace-path /krea2/?(.*) /\\1\n"
    configuration = configuration.replace("    default_backend", f"{rule}    default_backend")
    url = f"{URL}/krea2"

    async def test() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            http_server(fakes.address, **SETTINGS | {"public_url": url}) as server,
            haproxy(run_folder, configuration, server.base_url) as client,
        ):
            await expect_the_usual(client, url)
            assert '<base href="/krea2/" />' in (await client.get(url)).text

    run(test())


def test_kubernetes_finds_the_server_alive_and_ready(run_folder: Path) -> None:
    (pod,) = written("yaml")[-1:]
    container = yaml.safe_load(pod)["containers"][0]
    probes = [container[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")]
    assert {probe["port"] for probe in probes} == {container["ports"][0]["containerPort"]}

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, api_keys=("secret",)) as server:
            for probe in probes:
                asked = {"Host": f"10.42.0.17:{probe['port']}", "User-Agent": "kube-probe/1.33", "Connection": "close"}
                answer = await server.get(probe["path"], headers=asked | {"Authorization": ""})
                assert answer.status_code == 200, probe

    run(test())
