"""LoRAs over HTTP: the routes, and the openai package."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from engine.config.engine_config import EngineConfig
from engine.errors import ConflictError
from launcher.client.async_client import AsyncClient
from launcher.messages.client_messages import Loras
from tests.launcher.fake_ranks import Fakes, fake_engine, run
from tests.launcher.http.apis.fake_link import FakeLink, fake_server
from tests.launcher.http_servers import PATH, PROMPT, http_server, http_server_without_engine
from tests.launcher.lora_stand_in import fake_adapters, write_adapter

__all__ = ["fake_adapters"]
pytestmark = pytest.mark.usefixtures("fake_adapters")
LORAS = "/v1/loras"


@asynccontextmanager
async def http_engine(run_folder: Path, folder: Path | None) -> AsyncIterator[tuple[httpx.AsyncClient, Fakes]]:
    settings: dict[str, Any] = {} if folder is None else {"lora_dir": str(folder)}
    async with fake_engine(run_folder, **settings) as fakes, http_server(fakes.address) as client:
        yield client, fakes


def test_loading_listing_choosing_and_unloading(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        header = {"krea2.steps": "3", "krea2.mu": "0"}
        write_adapter(tmp_path / "ink.safetensors", modules=264, size=5000, family="LoKr", header=header)
        async with http_engine(run_folder, tmp_path) as (client, fakes):
            assert (await client.get(LORAS)).json() == {"object": "list", "data": [], "merged": [], "loadable": True}
            loaded = await client.post(LORAS, json={"name": "Ink é", "path": "ink.safetensors", "strength": 0.5})
            described = {
                "object": "lora", "name": "Ink é", "file": "ink.safetensors", "strength": 0.5, "family": "LoKr",
                "modules": 264, "bytes": 5000, "left_out": None,
                "made_for": {"steps": 3, "sigmas": None, "mu": 0.0, "guidance": None},
            }  # fmt: skip
            assert (loaded.status_code, loaded.json()) == (200, described)
            assert (await client.get(LORAS)).json()["data"] == [described]
            async with openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0) as ours:
                answer = await ours.images.generate(
                    prompt=PROMPT, extra_body={"loras": [{"name": "Ink é", "strength": -0.75}], "steps": 2}
                )
                assert answer.data is not None
                image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
                settings = json.loads(image.info["krea2"])
                assert settings["loras"] == [{"name": "Ink é", "strength": -0.75}]
                (job,) = (job for step in fakes.ranks[0].steps for job in step.start)
                assert job.loras == ((0, -0.75),)
                answer = await ours.images.generate(prompt=PROMPT, extra_body={"loras": ["Ink é"]})
                assert (answer.model_extra or {})["made_for"] == described["made_for"]
                *_, job = (job for step in fakes.ranks[0].steps for job in step.start)
                assert (job.loras, job.steps, job.mu) == (((0, 0.5),), 3, 0.0)
                await ours.images.generate(prompt=PROMPT, extra_body={"loras": ["Ink é"], "sigmas": [1, "0.5", 0]})
                *_, job = (job for step in fakes.ranks[0].steps for job in step.start)
                assert (job.steps, job.sigmas, job.mu) == (2, (1.0, 0.5), None)
                with pytest.raises(openai.BadRequestError, match="sigmas must be numbers that fall"):
                    await ours.images.generate(prompt=PROMPT, extra_body={"sigmas": "0.5,1"})
                with pytest.raises(openai.BadRequestError, match="among the loaded ones") as refusal:
                    await ours.images.generate(prompt=PROMPT, extra_body={"loras": [{"name": "Oil"}]})
                assert (refusal.value.param, refusal.value.code) == ("loras", "invalid_parameter")
            drawn = await client.post("/sdapi/v1/txt2img", json={"prompt": f"{PROMPT} <lora:Ink é:1>"})
            info = json.loads(drawn.json()["info"])
            assert (info["steps"], info["made_for"]) == (3, described["made_for"])
            assert "\nSteps: 3, " in info["infotexts"][0]
            await client.post("/sdapi/v1/txt2img", json={"prompt": PROMPT, "sigmas": [1, 0.5], "mu": 0})
            *_, job = (job for step in fakes.ranks[0].steps for job in step.start)
            assert (job.steps, job.sigmas, job.mu) == (2, (1.0, 0.5), 0.0)
            for _ in range(2):
                gone = await client.delete(f"{LORAS}/Ink%20%C3%A9")
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
            assert (await client.get(LORAS)).json()["data"] == []

    run(test())


def test_who_loads_hears_what_was_left_out(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        for name in ("ink", "oil"):
            header = {"krea2.steps": "3"} if name == "oil" else {}
            write_adapter(tmp_path / f"{name}.safetensors", skipped=[f"of {name}"], header=header)
        merged = EngineConfig(lora_lenient=True, merge_loras=((str(tmp_path / "oil.safetensors"), 0.5),))
        async with (
            fake_engine(run_folder, engine=merged, lora_dir=str(tmp_path)) as fakes,
            http_server(fakes.address, engine=merged) as client,
        ):
            defaults = (await client.get("/v1/settings")).json()["defaults"]
            assert (defaults["steps"], defaults["guidance"]) == (3, 0.0)  # of the merged LoRA
            loaded = await client.post(LORAS, json={"name": "Ink", "path": "ink.safetensors"})
            assert (loaded.status_code, loaded.json()["left_out"]) == (200, "lora_lenient leaves out of ink")
            listed = (await client.get(LORAS)).json()
            assert listed["data"] == [loaded.json()]
            left_out = "lora_lenient leaves out of oil"
            made_for = {"steps": 3, "sigmas": None, "mu": None, "guidance": None}
            merged_one = {"file": "oil.safetensors", "strength": 0.5, "left_out": left_out, "made_for": made_for}
            assert listed["merged"] == [merged_one]
            async with AsyncClient(fakes.address) as ours:
                assert (await ours.loras()).left_out == {"Ink": loaded.json()["left_out"], "oil.safetensors": left_out}

    run(test())


def test_what_cannot_be_loaded_is_a_400_that_says_why(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "text.safetensors").write_text("hello")
        write_adapter(tmp_path / "fine.safetensors")
        async with http_engine(run_folder, tmp_path) as (client, _):
            fine = {"name": "a", "path": "fine.safetensors"}
            assert (await client.post(LORAS, json=fine)).status_code == 200
            named = await client.post(LORAS, json={"name": "fine.safetensors"})
            assert (named.status_code, named.json()["file"]) == (200, "fine.safetensors")
            for body, code, parameter, message in (
                ({"path": "text.safetensors"}, "bad_lora", None, "text.safetensors: is not a Krea 2 LoRA"),
                ({"path": "../x"}, "invalid_parameter", "path", "path must be relative to the server's --lora-dir"),
                ({"path": "a/b"}, "invalid_parameter", "path", "path must be relative to the server's --lora-dir"),
                ({"name": "a"}, "invalid_parameter", "name", "name 'a' is taken by a LoRA that is loaded"),
                ({"name": 3}, "invalid_parameter", "name", "name must be a valid string, got 3"),
                ({"strength": 99}, "invalid_parameter", "strength", "strength must be between -10 and 10, got 99"),
                ({"strong": 1}, "invalid_parameter", "strong", "unknown parameter 'strong'"),
            ):
                answer = await client.post(LORAS, json=fine | {"name": "b"} | body)
                error = answer.json()["error"]
                assert (answer.status_code, error["code"], error["param"]) == (400, code, parameter), body
                assert error["message"].startswith(message)
            for loras, message in (
                ([3], 'loras[0] must be a name, or {"name": …, "strength": …}, got 3'),
                ([{"name": "a", "strength": "high"}], "loras[0].strength must be a valid number, got 'high'"),
                ([{}], "loras[0].name is required"),
                ([{"name": "a"}, {"name": "b", "height": 1}], "unknown parameter 'loras[1].height'"),
                ([{"name": "a"}, "a"], "loras must be different ones, got 'a'"),
                ("a", "loras must be a valid list, got 'a'"),
            ):
                error = (await client.post(PATH, json={"prompt": PROMPT, "loras": loras})).json()["error"]
                assert (error["param"], error["message"]) == ("loras", message)

    run(test())


def test_without_a_folder_nothing_can_be_loaded_and_without_a_key_nothing_be_seen(
    run_folder: Path, tmp_path: Path
) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, api_keys=("secret",)) as client:
            load = await client.post(LORAS, json={"name": "a", "path": "a.safetensors"})
            for answer in (load, await client.delete(f"{LORAS}/a")):
                assert answer.status_code == 400
                assert "only if the server has a --lora-dir" in answer.json()["error"]["message"]
            assert not (await client.get(LORAS)).json()["loadable"]
            for method, path in (("GET", LORAS), ("POST", LORAS), ("DELETE", f"{LORAS}/a")):
                answer = await client.request(method, path, headers={"Authorization": ""})
                assert answer.status_code == 401

    run(test())


def test_the_description_says_what_is_allowed() -> None:
    async def test() -> None:
        async with http_server_without_engine("ipc:///nonexistent/krea2") as client:
            schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
            assert schemas["ImageRequest"]["properties"]["loras"]["anyOf"][0]["maxItems"] == 8
            strength = schemas["LoraChoiceBody"]["properties"]["strength"]["anyOf"][0]
            assert (strength["minimum"], strength["maximum"]) == (-10, 10)
            settings = (await client.get("/v1/settings")).json()
            assert (settings["max_lora_strength"], settings["limits"]["max_request_loras"]) == (10, 8)
            docs = (await client.get("/docs")).text
            assert "list of text or object, at most 8" in docs
            assert (await client.get(LORAS)).status_code == 503

    run(test())


def test_a_stream_that_begins_while_another_lora_loads_goes_on(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        write_adapter(tmp_path / "a.safetensors")
        async with http_engine(run_folder, tmp_path) as (client, fakes):
            loads = [client.post(LORAS, json={"name": f"a{i}", "path": "a.safetensors"}) for i in range(4)]
            images = [client.post(PATH, json={"prompt": PROMPT, "steps": 3}) for _ in range(4)]
            answers = await asyncio.gather(*loads, *images)
            assert [answer.status_code for answer in answers] == [200] * 8
            assert len(fakes.ranks[0].steps) > 4

    run(test())


class DeclaredLink(FakeLink):
    """A link behind which nobody can load anything, as a cluster's."""

    async def load_lora(self, name: str, path: str | None, strength: float) -> Loras:
        """Refuse it."""
        raise ConflictError("LoRAs are declared in the config")

    async def unload_lora(self, name: str) -> Loras:
        """Refuse it."""
        raise ConflictError("LoRAs are declared in the config")


def test_a_link_that_cannot_change_what_is_loaded_is_a_conflict_which_nobody_is_to_ask_for_again() -> None:
    with fake_server(link=DeclaredLink()) as (client, _):
        for answer in (client.post(LORAS, json={"name": "ink"}), client.delete(f"{LORAS}/ink")):
            assert (answer.status_code, answer.headers["X-Should-Retry"]) == (409, "false")
            assert "Retry-After" not in answer.headers
            error = answer.json()["error"]
            assert (error["code"], error["type"]) == ("conflict", "invalid_request_error")
            assert error["message"] == "LoRAs are declared in the config"
