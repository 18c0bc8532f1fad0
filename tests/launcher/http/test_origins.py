"""Pages of other origins: browsers are told which may read answers, and send what they want to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError
from launcher.http.server_process import check_http
from launcher.messages.configs import HttpConfig
from launcher.messages.limits import Limits
from tests.launcher.conftest import Krea2
from tests.launcher.fake_ranks import DEADLINE_S, Fakes, fake_engine, run
from tests.launcher.http.http_requests import NOWHERE, error_of
from tests.launcher.http_servers import PATH, PROMPT, http_server, http_server_without_engine

APP = "https://app.example"
# What openai's package sends from a browser.
SENT = (
    "authorization, content-type, idempotency-key, x-request-id, x-stainless-arch, x-stainless-lang, x-stainless-os, "
    "x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, "
    "x-stainless-timeout, openai-organization, openai-project"
)


def check_origin(origin: str) -> None:
    check_http(HttpConfig(engine=EngineConfig(), limits=Limits(), allowed_origins=(origin,)), insecure=False)


async def ask_before(client: httpx.AsyncClient, path: str, origin: str, **headers: str) -> httpx.Response:
    """What a browser does before a request that is not simple. headers: with _ for -."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": SENT}
    return await client.request("OPTIONS", path, headers={"Authorization": "", **asked, **more})


def cors(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize(
    "origin",
    [
        "*", APP, "http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:1", "HTTPS://App.example:443",
        "chrome-extension://abcdefghijklmnop", "tauri://localhost", "app://obsidian.md",
    ],
)  # fmt: skip
def test_these_are_origins(origin: str) -> None:
    check_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "", "null", "app.example", "localhost:3000", "https://app.example/", "https://app.example/krea2", "https://",
        "https://*.example", "https://a:b@app.example", "https://app.example?x", "https://app.example#x",
        "https://app.example:0", "https://app.example:99999", "https://app.example:", "https://[::1", "https://é.example",
        "https://a b", "https://a\n.example", "file://", "//app.example", "**", "https://a.example,https://b.example",
    ],
)  # fmt: skip
def test_those_are_none(origin: str) -> None:
    with pytest.raises(ArgumentError, match=r"allow_origin must be \* or scheme://host\[:port\] without a path, as "):
        check_origin(origin)


def test_everybodys_pages_are_warned_of_where_there_are_no_keys(krea2: Krea2) -> None:
    warning = "warning: every web page that is open in a browser near this server can use it\n"
    beyond = ("serve", "--host", "nowhere.invalid", "--insecure")  # so that nothing is started
    assert warning in krea2(*beyond, "--allow-origin", "*")[2]
    assert warning not in krea2(*beyond, "--allow-origin", "*", "--api-key", "secret")[2]
    assert warning not in krea2(*beyond, "--allow-origin", APP)[2]


def test_a_browser_is_told_before_what_a_page_may_send_whatever_the_route() -> None:
    async def test() -> None:
        config = {"allowed_origins": ("http://localhost:3000", "HTTPS://App.example:443"), "api_keys": ("secret",)}
        async with http_server_without_engine(NOWHERE, **config) as client:
            for path in (PATH, "/v1/models", "/", "/ready", "/nothing", "/v1/images/files/x"):
                answer = await ask_before(client, path, APP)
                assert (answer.status_code, answer.content) == (204, b""), path
                assert answer.headers["vary"] == "Origin"
                told = cors(answer)
                assert told["access-control-allow-origin"] == APP
                assert {"GET", "POST", "DELETE"} <= {*told["access-control-allow-methods"].split(", ")}
                assert told["access-control-allow-headers"] == SENT
                assert told["access-control-max-age"] == "7200"
                assert "access-control-allow-private-network" not in told
                assert "access-control-allow-credentials" not in told
            private = await ask_before(client, PATH, APP, Access_Control_Request_Private_Network="true")
            assert private.headers["access-control-allow-private-network"] == "true"
            for origin in (
                "https://evil.example",
                "https://app.example.evil",
                "http://app.example",
                "null",
                "http://[",
            ):
                refused = await ask_before(client, PATH, origin)
                assert (refused.status_code, error_of(refused)["code"]) == (403, "origin_not_allowed"), origin
                assert cors(refused) == {}
            rebound = await ask_before(client, PATH, APP, Host="evil.example")
            assert (rebound.status_code, error_of(rebound)["code"]) == (403, "host_not_allowed")
            metrics = await client.get("/metrics")
            assert 'krea2_http_requests_total{method="OPTIONS",route="other",status="204"} 7.0' in metrics.text

    run(test())


def test_a_page_may_read_answers_streams_and_errors(run_folder: Path) -> None:
    async def test() -> None:
        limits = Limits(max_queue=1, max_image_bytes=1)
        config: dict[str, Any] = {"allowed_origins": (APP,), "api_keys": ("secret",), "max_body_bytes": 1000}
        async with (
            fake_engine(run_folder, limits=limits) as fakes,
            http_server(fakes.address, limits=limits, **config) as client,
        ):
            body = {"prompt": PROMPT, "steps": 2}

            async def expect(status: int, method: str, path: str, key: str = "secret", **content: Any) -> None:
                headers = {"Origin": APP, "Authorization": f"Bearer {key}"}
                answer = await client.request(method, path, headers=headers, **content)
                assert answer.status_code == status, answer.text
                assert answer.headers["access-control-allow-origin"] == APP
                assert "Retry-After" in answer.headers["access-control-expose-headers"].split(", ")
                assert answer.headers["vary"] == "Origin"

            await expect(200, "POST", PATH, json=body)
            await expect(200, "POST", PATH, json=body | {"stream": True})
            await expect(200, "GET", "/v1/models")
            await expect(200, "GET", "/")
            await expect(400, "POST", PATH, json=body | {"steps": -1})
            await expect(401, "POST", PATH, key="wrong", json=body)
            await expect(404, "GET", "/nothing")
            await expect(405, "DELETE", PATH)
            await expect(413, "POST", PATH, content=b"x" * 4001)
            await expect(415, "POST", PATH, data={"prompt": PROMPT})
            fakes.ranks[0].hold = True
            before = len(fakes.ranks[0].steps)
            async with asyncio.TaskGroup() as group:
                group.create_task(expect(200, "POST", PATH, json=body))
                await fakes.ranks[0].has_steps(before + 2)  # no more are sent, so the next one waits
                group.create_task(expect(200, "POST", PATH, json=body))
                await until_one_waits(fakes)
                await expect(429, "POST", PATH, json=body)
                fakes.ranks[0].resume()
        async with http_server_without_engine(NOWHERE, allowed_origins=(APP,)) as client:
            unavailable = await client.get("/ready", headers={"Origin": APP})
            assert (unavailable.status_code, unavailable.headers["access-control-allow-origin"]) == (503, APP)

    run(test())


def test_other_pages_may_read_nothing_and_caches_know() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE, allowed_origins=(APP,)) as client:
            for origin in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {}):
                answer = await client.get("/v1/models", headers=origin)
                assert (answer.status_code, answer.headers["vary"], cors(answer)) == (200, "Origin", {})
            refused = await client.post(PATH, json={"prompt": PROMPT}, headers={"Origin": "https://evil.example"})
            assert (refused.status_code, error_of(refused)["code"], cors(refused)) == (403, "origin_not_allowed", {})

    run(test())


def test_a_star_is_for_everybodys_pages_also_without_their_origin_and_never_for_other_hosts() -> None:
    async def test() -> None:
        for keys in ((), ("secret",)):
            async with http_server_without_engine(NOWHERE, allowed_origins=("*",), api_keys=keys) as client:
                for origin in (APP, "null", "http://["):
                    assert (await ask_before(client, PATH, origin)).status_code == 204
                    posted = await client.post("/v1/models", headers={"Origin": origin})
                    assert (posted.status_code, posted.headers["access-control-allow-origin"]) == (405, "*")
                    assert "access-control-allow-credentials" not in posted.headers
                plain = await client.get("/v1/models")  # which a browser may keep, and have for a page that asks later
                assert (plain.headers["access-control-allow-origin"], plain.headers.get("vary")) == ("*", None)
                rebound = await client.get("/v1/models", headers={"Origin": APP, "Host": "evil.example"})
                assert (rebound.status_code, error_of(rebound)["code"]) == (403, "host_not_allowed")

    run(test())


def test_without_the_option_there_are_no_headers_and_no_preflights() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            asked = await ask_before(client, PATH, APP)
            assert (asked.status_code, error_of(asked)["code"], cors(asked)) == (403, "origin_not_allowed", {})
            assert error_of(asked)["message"] == f"Origin must be this server's own or an --allow-origin, got {APP!r}"
            own = await ask_before(client, PATH, str(client.base_url))
            assert (own.status_code, cors(own)) == (405, {})
            answer = await client.get("/v1/models", headers={"Origin": APP})
            assert (answer.status_code, cors(answer), answer.headers.get("vary")) == (200, {}, None)

    run(test())


async def until_one_waits(fakes: Fakes) -> None:
    client = await fakes.client()
    try:
        async with asyncio.timeout(DEADLINE_S):
            while (await client.status()).waiting != 1:
                await asyncio.sleep(0.01)
    finally:
        await client.close()
