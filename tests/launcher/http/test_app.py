"""The page, its files, and what is answered at no route."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import engine
from engine.config.engine_config import EngineConfig
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.http_servers import http_server, http_server_without_engine


def test_the_page_and_its_files_are_served_and_load_nothing_from_elsewhere(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, api_keys=("secret",)) as client:
            anyone = {"Authorization": ""}
            page = await client.get("/", headers=anyone)
            assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert page.headers["cache-control"] == "no-cache"
            assert "default-src 'self'" in page.headers["content-security-policy"]
            for path, base in (("/page", "./"), ("/page/", "../"), ("/page/index.html", "../"), ("//", "../")):
                same = (await client.get(f"{client.base_url}{path}", headers=anyone)).text
                assert same == page.text.replace('<base href="./" />', f'<base href="{base}" />'), path
            again = await client.get("/", headers=anyone | {"If-None-Match": page.headers["etag"]})
            assert again.status_code == 304
            for path in {*re.findall('(?:href|src)="([a-z][^"]+)"', page.text)} - {"docs", "license", "openapi.json"}:
                file = await client.get(f"/{path}", headers=anyone)
                assert (file.status_code, file.headers.get("cache-control")) == (200, "no-cache"), path
            for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page//../app.py"):
                assert (await client.get(path, headers=anyone)).status_code == 404
            for wanted in ("bytes=0-9", "bytes=9-0", "bytes=a", "bytes=999999999-", "lines=1-2"):
                for path in ("/", "/page/icon.svg"):
                    plain = await client.get(path, headers=anyone)
                    whole = await client.get(path, headers=anyone | {"Range": wanted})
                    assert (whole.status_code, whole.text) == (200, plain.text), wanted
                    assert whole.headers["accept-ranges"] == "none"
            icon = await client.get("/favicon.ico", headers=anyone)
            assert (icon.status_code, icon.content[:4]) == (200, b"\0\0\1\0")

    run(test())


def test_the_status_says_what_the_engine_runs_on_and_does(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder, tp=2) as fakes,
            http_server(fakes.address, engine=EngineConfig(tp=2), model_names=("fox",)) as client,
        ):
            status = (await client.get("/v1/status")).json()
            expected = {"model": "fox", "version": engine.__version__, "device": "cpu", "ranks": 2, "tp": 2, "sp": 1}
            assert expected | {"waiting": 0, "running": 0, "not_ready": None} | status == status
            assert [purposes["weights"] for purposes in status["rank_memory"]] == [1, 1]
            assert "loras" not in status
        async with http_server_without_engine("ipc:///nonexistent/krea2", api_keys=("secret",)) as client:
            assert (await client.get("/v1/status")).status_code == 503
            assert (await client.get("/v1/status", headers={"Authorization": ""})).status_code == 401

    run(test())


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/images/generations", ": did you mean /v1/images/generations?"),  # of a base_url without /v1
        ("/v1/image/generation", ": did you mean /v1/images/generations?"),
        ("/readyz", ": did you mean /ready?"),
        ("/nothing/" + "x" * 1000, "; /docs has all there is"),
        ("/v1/set_lora", "loads one, and loras of POST /v1/images/generations names it"),
        ("/v1/", "which add paths such as /images/generations to it themselves"),
        ("/swagger/index.html", "described at /docs, and in /openapi.json"),
        ("/generate", ": this server draws: POST /v1/images/generations"),
    ],
)
def test_a_path_that_is_none_is_answered_with_the_nearest(path: str, instead: str) -> None:
    async def test() -> None:
        async with http_server_without_engine("ipc:///nonexistent/krea2") as client:
            answer = await client.post(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert answer.json()["error"]["message"].endswith(instead)

    run(test())


def test_head_is_answered_wherever_get_is_and_another_method_with_those_there_are(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, api_keys=("secret",)) as client:
            described = (await client.get("/openapi.json")).json()["paths"]
            paths = {path for path, methods in described.items() if "get" in methods and "{" not in path}
            for path in paths | {"/", "/docs", "/openapi.json", "/favicon.ico"}:
                answer = await client.head(path)
                assert (answer.status_code, answer.content) == (200, b""), path
                assert int(answer.headers["content-length"]) > 0, path
            assert (await client.head("/v1/models", headers={"Authorization": ""})).status_code == 401
            answer = await client.get("/v1/images/generations")
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
            message = answer.json()["error"]["message"]
            assert message == "GET is not possible at /v1/images/generations: POST is"

    run(test())
