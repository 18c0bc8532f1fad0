"""The API as its description has it, and its page."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import engine
from engine.config.engine_config import EngineConfig
from launcher.messages.limits import Limits
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run
from tests.launcher.http_servers import http_server, http_server_without_engine

SMALL = Limits(max_side=128, max_steps=8, max_images=2)  # so that what is valid is also quick
CASES = {"GET": 5, "POST": 60, "DELETE": 5}  # for each operation and mode
CHECKS = (not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance)


def test_nothing_that_follows_the_description_or_breaks_it_is_a_server_error(run_folder: Path) -> None:
    def explore(url: str) -> int:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        modes = schemathesis.GenerationMode
        statuses = []
        for found in schema.get_all_operations():
            operation = found.ok()
            method = operation.method.upper()
            for mode in (modes.POSITIVE, modes.NEGATIVE) if method == "POST" else (modes.POSITIVE,):
                cases = operation.as_strategy(generation_mode=mode)

                @settings(
                    max_examples=CASES[method], deadline=None, database=None, phases=[Phase.generate], derandomize=True,
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                @given(case=cases)
                def check(case: schemathesis.Case) -> None:
                    answer = case.call(base_url=url, timeout=DEADLINE_S)
                    statuses.append(answer.status_code)
                    case.validate_response(answer, checks=CHECKS)

                check()
        assert {200, 400, 404} <= set(statuses)
        return len(statuses)

    async def test() -> None:
        async with (
            fake_engine(run_folder, limits=SMALL) as fakes,
            http_server(fakes.address, limits=SMALL) as client,
        ):
            count = await asyncio.to_thread(explore, str(client.base_url))
            assert count > 100

    run(test())


def test_the_description_has_the_limits_and_defaults_of_this_server() -> None:
    async def test() -> None:
        limits = Limits(max_side=256, max_steps=8, max_guidance=2.5)
        async with http_server_without_engine("ipc:///nonexistent/krea2", limits=limits) as client:
            description = (await client.get("/openapi.json")).json()
            properties = description["components"]["schemas"]["ImageRequest"]["properties"]
            settings = (await client.get("/v1/settings")).json()
            for name, low, high, default in (
                ("width", 64, 256, settings["defaults"]["width"]),
                ("num_inference_steps", 1, 8, settings["defaults"]["steps"]),
                ("guidance", 0, 2.5, settings["defaults"]["guidance"]),
                ("n", 1, 10, 1),
                ("priority", -100, 100, 0),
            ):
                number = properties[name]["anyOf"][0]
                assert (number["minimum"], number["maximum"]) == (low, high), name
                assert properties[name]["description"].endswith(f"Default: {default:g}."), name
            schemas = description["components"]["schemas"]
            for name, field in [each for schema in schemas.values() for each in schema["properties"].items()]:
                assert re.fullmatch("[A-Z].*[.]", field.get("description", "")), name
            assert properties["width"]["description"].startswith(
                f"The width of the images in pixels, rounded up to a multiple of {settings['size_multiple']}. Give "
            )
            assert settings["good_sides"] == [96, 256]
            docs = (await client.get("/docs")).text
            assert "number, 0 to 2.5" in docs
            assert f"integer, -1 to {2**53 - 1}" in docs

    run(test())


def test_the_page_and_its_files_are_served_and_load_nothing_from_elsewhere(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, api_keys=("secret",)) as client:
            anyone = {"Authorization": ""}
            page = await client.get("/", headers=anyone)
            assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert page.headers["cache-control"] == "no-cache"
            assert "default-src 'self'" in page.headers["content-security-policy"]
            assert (await client.get("/page/index.html", headers=anyone)).text == page.text
            again = await client.get("/", headers=anyone | {"If-None-Match": page.headers["etag"]})
            assert again.status_code == 304
            for path in {*re.findall('(?:href|src)="(/[^"]+)"', page.text)} - {"/docs", "/openapi.json"}:
                file = await client.get(path, headers=anyone)
                assert (file.status_code, file.headers.get("cache-control")) == (200, "no-cache"), path
            for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page//../app.py"):
                assert (await client.get(path, headers=anyone)).status_code == 404
            for wanted in ("bytes=0-9", "bytes=9-0", "bytes=a", "bytes=999999999-", "lines=1-2"):
                for path in ("/", "/page/index.html"):
                    whole = await client.get(path, headers=anyone | {"Range": wanted})
                    assert (whole.status_code, whole.text) == (200, page.text), wanted
                    assert whole.headers["accept-ranges"] == "none"
            icon = await client.get("/favicon.ico", headers=anyone)
            assert (icon.status_code, icon.content[:4]) == (200, b"\0\0\1\0")
            docs = await client.get("/docs")
            assert "num_inference_steps" in docs.text
            assert "src=" not in docs.text
            assert '<a href="/">' in docs.text  # who came from the page finds back

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
        ("/v1/chat/completions", "; /docs has all there is"),
        ("/generate/" + "x" * 1000, "; /docs has all there is"),
    ],
)
def test_a_path_that_is_none_is_answered_with_the_nearest(path: str, instead: str) -> None:
    async def test() -> None:
        async with http_server_without_engine("ipc:///nonexistent/krea2") as client:
            answer = await client.post(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert answer.json()["error"]["message"].endswith(instead)

    run(test())
