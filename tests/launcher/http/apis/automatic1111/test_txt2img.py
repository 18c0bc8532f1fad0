"""`POST /sdapi/v1/txt2img` before an engine whose ranks compute nothing; progress, previews, and ending it early."""

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
import pytest
from PIL import Image

from engine.step import Job
from launcher.requests.image_metadata import read_infotext
from tests.launcher.fake_ranks import DEADLINE_S, Fakes, fake_engine, run
from tests.launcher.http.http_requests import error_of, head
from tests.launcher.http_servers import PATH, PROMPT, http_server
from tests.launcher.lora_stand_in import fake_adapters, write_adapter

__all__ = ["fake_adapters"]
SDAPI = "/sdapi/v1"
TXT2IMG = f"{SDAPI}/txt2img"


@asynccontextmanager
async def engine(
    run_folder: Path, lora_dir: Path | None = None, **config: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Fakes]]:
    settings = {} if lora_dir is None else {"lora_dir": str(lora_dir)}
    async with fake_engine(run_folder, **settings) as fakes, http_server(fakes.address, **config) as client:
        yield client, fakes


def basic(credentials: str) -> str:
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


def opened(image: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image, validate=True)))


async def drawn(client: httpx.AsyncClient, **body: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer, and what its info says."""
    answer = await client.post(TXT2IMG, json={"prompt": PROMPT} | body)
    assert answer.status_code == 200, answer.text
    return answer.json(), json.loads(answer.json()["info"])


async def progress_of(client: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    progress: dict[str, Any] = (await client.get(f"{SDAPI}/progress", **asked)).json()
    return progress


def test_images_and_what_they_were_made_with(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder) as (client, fakes):
            answer, info = await drawn(
                client,
                seed=5,
                steps=3,
                width=97,
                height=96,
                n_iter=2,
                cfg_scale=7,
                negative_prompt="blurry",
                auth="a:b",
            )
            assert set(answer) == {"images", "parameters", "info", "warnings"}
            images = [opened(image) for image in answer["images"]]
            assert [(image.format, image.size, image.getpixel((0, 0))[0]) for image in images] == [  # type: ignore[index]
                ("PNG", (112, 96), 5),
                ("PNG", (112, 96), 6),
            ]
            assert answer["parameters"] == {
                "prompt": PROMPT, "negative_prompt": "blurry", "seed": 5, "steps": 3, "width": 97, "height": 96,
                "n_iter": 2, "cfg_scale": 7.0,
            }  # fmt: skip
            known = {
                "prompt": PROMPT, "seed": 5, "all_seeds": [5, 6], "width": 112, "height": 96, "steps": 3,
                "sampler_name": "Euler", "cfg_scale": 1.0, "guidance": 0.0, "sd_model_name": "demo",
                "index_of_first_image": 0, "all_prompts": [PROMPT] * 2, "all_negative_prompts": ["blurry"] * 2,
            }  # fmt: skip
            assert info.items() >= known.items()
            assert info["infotexts"] == [image.info["parameters"] for image in images]
            assert [text.splitlines()[0] for text in info["infotexts"]] == [PROMPT] * 2
            assert "Seed: 6, Size: 112x96" in info["infotexts"][1]
            assert info["warnings"] == answer["warnings"]
            said = [warning.partition(":")[0] for warning in info["warnings"]]
            assert said == ["the negative prompt is not used", *said[1:2], "cfg_scale 7 was ignored"]
            assert "rounded up to 112 × 96" in said[1]
            (job, _) = jobs_of(fakes)
            assert (job.steps, job.guidance) == (3, 0.0)

    run(test())


def test_images_may_stay_here_be_of_other_kinds_and_come_again(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder) as (client, fakes):
            answer, info = await drawn(client, steps=2, send_images=False, explain=True)
            assert answer["images"] == []
            assert info["explanation"]
            for prompt in (PROMPT, "ein roter Kreis über Blau", "画"):
                png, info = await drawn(client, prompt=prompt, steps=2, seed=5)
                assert info["infotexts"] == [opened(png["images"][0]).info["parameters"]]
                assert "Seed: 5, Size: 128x128" in info["infotexts"][0]
                for output_format in ("webp", "jpeg"):
                    other, like_it = await drawn(client, prompt=prompt, steps=2, seed=5, output_format=output_format)
                    assert opened(other["images"][0]).format == output_format.upper()
                    assert like_it["infotexts"] == [read_infotext(opened(other["images"][0]))] == info["infotexts"]
            key, before = {"Idempotency-Key": "mine"}, len(jobs_of(fakes))
            answers = [await client.post(TXT2IMG, json={"prompt": PROMPT, "steps": 2}, headers=key) for _ in range(2)]
            assert answers[0].json()["images"] == answers[1].json()["images"]
            assert ["idempotent-replayed" in answer.headers for answer in answers] == [False, True]
            assert len(jobs_of(fakes)) == before + 1

    run(test())


def test_errors_are_told_in_all_places_where_clients_look(run_folder: Path) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"steps": 500}, "steps must be between 1 and 200, got 500"),
        ({"steps": "many"}, "steps must be a valid integer, unable to parse string as an integer"),
        ({"batch_size": 0}, "batch_size must be between 1 and 10, got 0"),
        ({"prompt": "a fox <lora:ink:1>"}, "loras must be among the loaded ones (none; --lora"),
        ({"promt": "a fox"}, "unknown parameter 'promt': did you mean prompt?"),
    ]

    async def test() -> None:
        async with engine(run_folder) as (client, _):
            for body, message in refused:
                answer = await client.post(TXT2IMG, json=body)
                error = error_of(answer)
                assert (answer.status_code, error["code"]) == (400, "invalid_parameter")
                assert error["message"].startswith(message)
                told = error["message"]
                assert answer.json() == {"error": error, "detail": told, "errors": told, "body": ""}
            for method, path, status in (("GET", "png-info", 404), ("GET", "txt2img", 405), ("POST", "samplers", 405)):
                answer = await client.request(method, f"{SDAPI}/{path}")
                assert (answer.status_code, answer.json()["detail"]) == (status, error_of(answer)["message"])
            assert answer.headers["allow"] == "GET, HEAD"

    run(test())


@pytest.mark.usefixtures("fake_adapters")
def test_loras_are_chosen_in_the_prompt(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        write_adapter(tmp_path / "ink.safetensors")
        async with engine(run_folder, tmp_path) as (client, fakes):
            assert (await client.post("/v1/loras", json={"name": "ink", "path": "ink.safetensors"})).status_code == 200
            listed = (await client.get(f"{SDAPI}/loras")).json()
            assert listed == [{"name": "ink", "alias": "ink", "path": "ink.safetensors", "metadata": {}}]
            prompt = f"{PROMPT} <lora:ink:0.75>"
            _, info = await drawn(client, prompt=prompt, steps=2)
            (job,) = jobs_of(fakes)
            assert job.loras == ((0, 0.75),)
            assert info["prompt"] == prompt
            assert info["infotexts"][0].splitlines()[0] == prompt

    run(test())


def test_progress_and_previews_of_who_asks(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.http.apis.automatic1111.watching._PATIENCE", 2)

    async def test() -> None:
        async with engine(run_folder) as (client, fakes):
            for _ in range(3):
                await drawn(client, steps=4)
            assert [job.preview_every for job in jobs_of(fakes)] == [1, 1, 0]
            idle = await progress_of(client)
            assert (idle["progress"], idle["eta_relative"], idle["current_image"]) == (0, 0, None)
            assert (idle["state"]["job"], idle["state"]["job_count"]) == ("", 0)
            fakes.ranks[0].hold_after_preview = True
            drawing = asyncio.create_task(drawn(client, steps=8, seed=3))
            told = idle
            async with asyncio.timeout(DEADLINE_S):
                while told["current_image"] is None:
                    told = await progress_of(client)
            assert opened(told["current_image"]).format == "JPEG"
            assert 0.01 <= told["progress"] < 1
            state = told["state"]
            assert (state["job"], state["job_count"], state["job_no"]) == ("txt2img", 1, 0)
            assert state["sampling_steps"] == 8
            assert told["progress"] == pytest.approx(state["sampling_step"] / 8)
            assert (await progress_of(client, params={"skip_current_image": "True"}))["current_image"] is None
            fakes.ranks[0].hold_after_preview = False
            fakes.ranks[0].resume()
            await drawing
            assert await progress_of(client) == idle

    run(test())


def test_keys_are_passwords_and_a_client_sees_and_ends_its_own_requests_alone(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder, api_keys=("first", "second")) as (client, fakes):
            other = {"Authorization": basic("anybody:second")}
            for offered in (basic("second"), basic("second:"), "Bearer second", other["Authorization"]):
                assert (await client.get(f"{SDAPI}/options", headers={"Authorization": offered})).status_code == 200
            for offered in (basic("second:third"), basic(":"), "Basic second", "Bearer third", "second", ""):
                refused = await client.get(f"{SDAPI}/options", headers={"Authorization": offered})
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Basic realm="krea2"')
                assert refused.json()["detail"] == error_of(refused)["message"]
            assert refused.json()["detail"].endswith("Bearer KEY, or the key as the password of any user")
            for path in ("/v1/models", "/metrics"):  # which OpenAI's clients and Prometheus ask, with bearers alone
                assert (await client.get(path, headers=other)).headers["www-authenticate"] == "Bearer"
            fakes.ranks[0].hold = True
            drawing = asyncio.create_task(client.post(TXT2IMG, json={"prompt": PROMPT, "steps": 4}))
            await until_images(client, 1)
            assert (await progress_of(client, headers=other))["state"]["job_count"] == 0
            ended = await client.post(f"{SDAPI}/interrupt", headers=other)
            assert ended.json() == {"info": "0 requests were interrupted"}
            assert (await progress_of(client))["state"]["job_count"] == 1
            assert (await client.post(f"{SDAPI}/interrupt")).json() == {"info": "1 request was interrupted"}
            answer = await drawing
            assert (answer.status_code, error_of(answer)["code"]) == (499, "cancelled")
            assert answer.json()["detail"] == "interrupted by /sdapi/v1/interrupt before an image was done"
            assert (await progress_of(client))["state"]["job_count"] == 0

    run(test())


def test_interrupting_answers_with_the_images_that_are_done_and_hanging_up_cancels(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder) as (client, fakes):
            rank = fakes.ranks[0]
            rank.decodes = False  # but for one, by hand
            drawing = asyncio.create_task(drawn(client, steps=2, seed=8, batch_size=3))
            async with asyncio.timeout(DEADLINE_S):
                while not any(step.decode for step in rank.steps):
                    await asyncio.sleep(0.01)
                rank.send_image(jobs_of(fakes)[1])
                while (await progress_of(client))["textinfo"] != "being drawn, 1 of 3 images done":
                    await asyncio.sleep(0.01)
            await client.post(f"{SDAPI}/interrupt")
            answer, info = await drawing
            assert (len(answer["images"]), info["all_seeds"]) == (1, [9])
            assert "interrupted by /sdapi/v1/interrupt after 1 of 3 images" in answer["warnings"]

            rank.hold = True
            body = json.dumps({"prompt": PROMPT, "steps": 5}).encode()
            address = client.base_url
            start = head(address, b"Content-Length: %d\r\n" % len(body)).replace(PATH.encode(), TXT2IMG.encode())
            async with asyncio.timeout(DEADLINE_S):
                _, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(start + body)
                await until_images(client, 1)
                writer.close()
                await until_images(client, 0)
                while (await client.get("/v1/status")).json()["running"]:
                    await asyncio.sleep(0.01)

    run(test())


def jobs_of(fakes: Fakes) -> list[Job]:
    return [job for step in fakes.ranks[0].steps for job in step.start]


async def until_images(client: httpx.AsyncClient, count: int) -> None:
    """Wait until the client has so many images under way."""
    async with asyncio.timeout(DEADLINE_S):
        while (await progress_of(client))["state"]["job_count"] != count:
            await asyncio.sleep(0.01)
