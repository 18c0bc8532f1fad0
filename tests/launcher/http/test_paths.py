"""Paths as clients and proxies send them: with slashes that mean nothing, and below the path of the public URL."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from starlette.types import Scope

from launcher.http.paths import Paths
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.http.http_requests import NOWHERE
from tests.launcher.http_servers import PATH, PROMPT, http_server, http_server_without_engine

PUBLIC = "https://example.org/krea2/"


@pytest.mark.parametrize(
    ("public_url", "sent", "route", "root"),
    [
        (None, "/", "/", "./"),
        (None, "/docs", "/docs", "./"),
        (None, "/docs/", "/docs", "../"),
        (None, "//docs//", "/docs", "../../../"),
        (None, "//v1//models/", "/v1/models", "../../../../"),
        (None, "*", "*", "./"),
        (None, "", "/", "./"),
        ("https://example.org", "/docs", "/docs", "./"),
        ("https://example.org/", "/docs/", "/docs", "../"),
        (PUBLIC, "/krea2", "/", "/krea2/"),
        (PUBLIC, "/krea2/", "/", "/krea2/"),
        (PUBLIC, "/krea2/v1/models/", "/v1/models", "/krea2/"),
        (PUBLIC, "/v1/models", "/v1/models", "/krea2/"),
        (PUBLIC, "/krea20/v1/models", "/krea20/v1/models", "/krea2/"),
        ("http://h/a//b%20c", "/a/b c/docs", "/docs", "/a/b%20c/"),
    ],
)
def test_a_path_is_of_a_route_and_has_a_way_to_the_first(
    public_url: str | None, sent: str, route: str, root: str
) -> None:
    scope: Scope = {"path": sent, "raw_path": sent.replace(" ", "%20").encode(), "state": {}}
    Paths(public_url).simplify(scope)
    assert (scope["path"], scope["state"]["root"]) == (route, root)


def test_a_slash_at_the_end_is_served_and_nothing_redirects(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, api_keys=("secret",)) as client:
            described = (await client.get("/openapi.json")).json()["paths"]
            paths = {path for path in described if "{" not in path}
            assert {"/v1/models", "/v1/loras", PATH, "/metrics"} <= paths
            paths |= {"", "/docs", "/openapi.json", "/favicon.ico", "/page", "/page/icon.svg", "/nothing"}
            base = str(client.base_url)
            evil = {"Host": "127.0.0.1:1"}  # which no answer may send a client to
            for path in paths:
                for method in ("GET", "POST"):
                    plain = await client.request(method, base + path, headers=evil)
                    assert plain.status_code not in range(300, 400), path
                    same = await client.request(method, f"{base}{path}/", headers=evil)
                    assert (same.status_code, "location" in same.headers) == (plain.status_code, False), path
            made = await client.post(f"{PATH}/", json={"prompt": PROMPT, "response_format": "url"})
            link = made.json()["data"][0]["url"]
            assert (await client.get(f"{link}/")).content == (await client.get(link)).content
            for path in ("//v1/models", "/v1//models", "/v1/models/"):  # are asked for a key all the same
                assert (await client.get(base + path, headers={"Authorization": ""})).status_code == 401, path

    run(test())


@pytest.mark.parametrize("passed_on", ["/krea2", ""])  # or taken off by the proxy
def test_below_the_path_of_the_public_url_everything_is_found(run_folder: Path, passed_on: str) -> None:
    async def test() -> None:
        config = {"public_url": PUBLIC, "allowed_hosts": ("example.org",)}
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, **config) as client:

            async def get(url: str) -> httpx.Response:
                """As a proxy of that address asks for it."""
                assert url.startswith(PUBLIC.rstrip("/")), url
                path = passed_on + urlsplit(url).path.removeprefix("/krea2")
                return await client.get(path or "/", headers={"Host": "example.org"})

            for url in (PUBLIC, PUBLIC.rstrip("/"), f"{PUBLIC}docs", f"{PUBLIC}docs/", f"{PUBLIC}page"):
                html = (await get(url)).text
                base = re.search('<base href="([^"]*)"', html)
                base_url = urljoin(url, unescape(base[1])) if base else url
                links = {urljoin(base_url, link) for link in re.findall('(?:href|src)="([^"#]+)"', html)} - {base_url}
                assert len(links) > 1
                for link in links:
                    assert (await get(link)).status_code == 200, link
            assert (await get(f"{PUBLIC}openapi.json")).json()["servers"] == [{"url": "https://example.org/krea2"}]
            posted = await client.post(
                passed_on + PATH,
                json={"prompt": PROMPT, "response_format": "url"},
                headers={"Host": "example.org", "Origin": "https://example.org"},
            )
            link = posted.json()["data"][0]["url"]
            assert (await get(link)).headers["content-type"] == "image/png"

    run(test())


def test_without_a_public_url_no_servers_are_named() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            assert "servers" not in (await client.get("/openapi.json")).json()

    run(test())
