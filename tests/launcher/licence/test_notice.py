"""The notice that is passed on with the weights: what it names, and where it is read."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import engine
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from launcher.cli.info import describe_checkpoint
from launcher.http.apis.licence import add_licence_route
from launcher.licence.notice import DEMO, KREA_2, SOFTWARE, notice
from launcher.messages.configs import HttpConfig
from launcher.messages.limits import Limits
from tests.launcher.fake_ranks import run
from tests.launcher.http_servers import http_server_without_engine

ROOT = Path(__file__).parents[3]


def test_it_names_both_licences_and_where_their_texts_are() -> None:
    text = " ".join(notice().split())
    for named in (KREA_2.name, KREA_2.url, str(KREA_2.use_policy), "krea2-engine", "Apache License, version 2.0"):
        assert named in text, named
    assert "generative AI" in text  # which is to be said of the pictures


def test_it_is_part_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["license"] == SOFTWARE
    patterns = settings["tool"]["setuptools"]["package-data"]["launcher"]
    assert any(fnmatch("licence/NOTICE", pattern) for pattern in patterns)


@pytest.mark.parametrize("model", [None, str(DEMO_CHECKPOINT)])  # a path is no demo's name
def test_whoever_asks_is_told_the_licence_of_what_is_served(model: str | None) -> None:
    own = DEMO if model is None else KREA_2
    app = FastAPI()
    config = HttpConfig(engine=EngineConfig(model=model), limits=Limits(), rpc="ipc:///none", run_folder="/none")
    add_licence_route(app, config)
    client = TestClient(app)
    plain = client.get("/license")
    assert plain.headers["content-type"] == "text/plain; charset=utf-8"
    assert own.name in plain.text.partition("\n")[0]
    assert plain.text.endswith(notice())
    told = client.get("/license", headers={"Accept": "application/json"}).json()
    facts = (told["license"], told["version"], told["url"], told["use_policy"], told["notice"])
    assert facts == (own.name, own.version, own.url, own.use_policy, notice())
    assert told["is_demo"] == (model is None)
    assert told["engine"] == {"name": "krea2-engine", "version": engine.__version__, "license": SOFTWARE}


def test_nobody_needs_a_key_to_be_told_it() -> None:
    async def test() -> None:
        async with http_server_without_engine("ipc:///none", api_keys=("secret",)) as client:
            assert (await client.get("/license", headers={"Authorization": ""})).status_code == 200

    run(test())


@pytest.mark.parametrize("model", [None, str(DEMO_CHECKPOINT)])
def test_krea2_info_names_it(model: str | None) -> None:
    own = DEMO if model is None else KREA_2
    shown = describe_checkpoint(EngineConfig(model=model))
    assert f"\n  licence       {own.name}, version {own.version}: {own.url}\n" in shown
