"""What clients call the model."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from launcher.cli.main import commands
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.http_servers import PATH, PROMPT, http_server

NAMES = ("gpt-image-1", "dall-e-3")


def test_each_served_name_is_one_and_no_name_is_the_first(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, model_names=NAMES) as client:
            for name in (*NAMES, "", None):
                answer = await client.post(PATH, json={"prompt": PROMPT, "model": name})
                assert answer.status_code == 200, name
            assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == [*NAMES]
            missing = await client.post(PATH, json={"prompt": PROMPT, "model": "gpt-5"})
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
            assert missing.json()["error"]["message"] == (
                "model must be gpt-image-1 or dall-e-3, got 'gpt-5'; leave it out, or start the server with "
                "--served-model-name gpt-5, or --any-model"
            )
            odd = (await client.get("/v1/models/$(rm x)")).json()["error"]["message"]  # nobody is to paste that
            assert odd.endswith("--served-model-name NAME, or --any-model")

    run(test())


def test_any_name_is_served_where_that_is_asked_for(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            http_server(fakes.address, model_names=NAMES, any_model=True) as client,
        ):
            assert (await client.post(PATH, json={"prompt": PROMPT, "model": "openai/x y"})).status_code == 200
            assert (await client.post(PATH, json={"prompt": PROMPT})).status_code == 200
            too_long = (await client.post(PATH, json={"prompt": PROMPT, "model": "x" * 600})).json()["error"]
            assert too_long["message"].startswith("model must be a name of at most 512 characters, got 'x")
            assert (await client.get("/v1/models/openai/x y")).json()["id"] == "openai/x y"
            assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == [*NAMES]

    with caplog.at_level(logging.INFO, logger="krea2"):
        run(test())
    logged = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "http"]
    assert [fields["model"] for fields in logged if fields.get("model")] == ["openai/x y", "gpt-image-1"]


def test_names_are_given_one_by_one_or_with_commas() -> None:
    arguments = ["--served-model-name", "a, b/c", "--served-model-name", "d"]
    assert commands.commands["serve"].make_context("serve", arguments).params["model_names"] == ("a", "b/c", "d")
