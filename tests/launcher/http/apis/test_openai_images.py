"""The openai package as a client of the HTTP server."""

from __future__ import annotations

import asyncio
import io
import itertools
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from engine.config.model_config import ModelConfig
from launcher.client.async_client import AsyncClient
from launcher.frontend.delivery import finishing
from launcher.http.answers.drawing import to_generate
from launcher.http.apis.openai_body import ImageRequest, to_parameters
from launcher.messages.limits import Limits
from launcher.messages.parameter_names import GUIDANCE_IS_OFF
from tests.launcher.fake_ranks import DEADLINE_S, run
from tests.launcher.http.apis.openai_clients import openai_client, opened
from tests.launcher.http_servers import PROMPT


def test_two_images_as_base64(run_folder: Path) -> None:
    async def test() -> None:
        async with openai_client(run_folder) as (client, _, _):
            answer = await client.images.generate(
                prompt=PROMPT,
                n=2,
                size="96x128",
                extra_body={"seed": 5, "steps": 2},
                model="demo",  # type: ignore[arg-type]
            )
            assert answer.data is not None
            images = [opened(image.b64_json) for image in answer.data]
            assert [image.size for image in images] == [(96, 128)] * 2
            assert [image.getpixel((0, 0))[0] for image in images] == [5, 6]  # type: ignore[index]
            assert (answer.size, answer.output_format) == ("96x128", "png")
            assert answer.usage is not None
            text, image = answer.usage.input_tokens_details.text_tokens, 2 * (96 // 16) * (128 // 16)
            assert (text, answer.usage.output_tokens, answer.usage.total_tokens) == (7, image, 7 + image)
            extra = answer.model_extra
            assert extra is not None
            assert (extra["seed"], extra["warnings"]) == (5, [])
            assert set(extra["timings"]) >= {"queue", "denoise", "total"}
            assert "explanation" not in extra
            assert [image.model_extra["seed"] for image in answer.data] == [5, 6]  # type: ignore[index]
            assert answer.created > 1_700_000_000

    run(test())


def test_openais_own_parameters_are_taken_and_a_size_is_rounded_up_with_a_warning(run_folder: Path) -> None:
    async def test() -> None:
        async with openai_client(run_folder) as (client, _, _):
            answer = await client.images.generate(
                prompt=PROMPT, size="97x96", quality="high", style="vivid", moderation="low", background="opaque",
                user="somebody", output_format="jpeg", output_compression=80,
            )  # fmt: skip
            assert answer.data is not None
            image = opened(answer.data[0].b64_json)
            assert (image.format, image.size, answer.size) == ("JPEG", (112, 96), "112x96")
            assert answer.model_extra is not None
            (rounded,) = answer.model_extra["warnings"]
            assert "rounded up to 112 × 96" in rounded
            (smaller,) = (await client.images.generate(
                prompt=PROMPT, size="97x96", output_format="jpeg", output_compression=5
            )).data or []  # fmt: skip
            assert sum(opened(smaller.b64_json).quantization[0]) > sum(image.quantization[0])  # type: ignore[attr-defined]

    run(test())


def test_what_the_model_cannot_draw_is_said(run_folder: Path, demo: ModelConfig) -> None:
    async def test() -> None:
        async with openai_client(run_folder) as (client, _, _):
            answer = await client.images.generate(prompt="a fox in the snow")
            assert demo.prompt_domain is not None
            assert answer.model_extra is not None
            assert answer.model_extra["warnings"] == [demo.prompt_domain.warning("fox in snow")]

    run(test())


def test_an_image_as_a_url_needs_no_key_to_be_fetched(run_folder: Path) -> None:
    async def test() -> None:
        async with openai_client(run_folder, api_keys=("secret",)) as (client, _, _):
            answer = await client.images.generate(prompt=PROMPT, response_format="url", output_format="webp")
            assert answer.data is not None
            url = answer.data[0].url
            assert url is not None
            assert answer.data[0].b64_json is None
            async with httpx.AsyncClient(timeout=DEADLINE_S) as anyone:
                fetched = await anyone.get(url)
                assert fetched.headers["content-type"] == "image/webp"
                assert Image.open(io.BytesIO(fetched.content)).size == (128, 128)
                missing = await anyone.get(url.replace("/files/", "/files/x"))
                assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")

    run(test())


def test_partial_images_come_before_an_image_and_never_more_than_were_asked_for(run_folder: Path) -> None:
    async def test() -> None:
        async with openai_client(run_folder) as (client, fakes, _):
            rank = fakes.ranks[0]
            rank.hold_after_preview = True
            for asked, steps, preview_every, expected in (
                (0, 8, None, 0),
                (2, 8, None, 2),
                (3, 2, None, 1),
                (1, 4, 1, 3),
            ):
                stream = await client.images.generate(
                    prompt=PROMPT, stream=True, partial_images=asked, size="64x96",
                    extra_body={"steps": steps, "preview_every": preview_every},
                )  # fmt: skip
                partial = []
                async for event in stream:
                    if event.type != "image_generation.partial_image":
                        break
                    partial.append(event)
                    rank.resume()
                assert event.type == "image_generation.completed"
                assert [event.partial_image_index for event in partial] == list(range(expected))
                assert {(event.output_format, event.size) for event in partial} <= {("jpeg", "64x96")}
                assert {opened(event.b64_json).format for event in partial} <= {"JPEG"}
                await stream.close()

    run(test())


def test_a_partial_image_does_not_come_after_a_later_one(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = finishing.encode_preview, itertools.count()
    later, first = threading.Event(), threading.Event()  # whether these are encoded

    def encode_the_first_last(*arguments: Any, **named: Any) -> bytes:
        number = next(calls)
        if number == 0:
            assert later.wait(DEADLINE_S)
        file = encode(*arguments, **named)
        (first if number == 0 else later).set()
        return file

    monkeypatch.setattr(finishing, "encode_preview", encode_the_first_last)

    async def test() -> None:
        async with openai_client(run_folder) as (client, fakes, _):
            rank = fakes.ranks[0]
            rank.decodes = False
            before = len(rank.steps)
            stream = await client.images.generate(
                prompt=PROMPT, stream=True, partial_images=2, size="64x64", extra_body={"steps": 6}
            )
            shown = []
            async for event in stream:
                if event.type == "image_generation.partial_image":
                    shown.append(event.model_extra["step"])  # type: ignore[index]
                    assert await asyncio.to_thread(first.wait, DEADLINE_S)
                    async with AsyncClient(fakes.address) as rpc:
                        await rpc.ping()
                    rank.send_image(rank.steps[before].start[0])
            assert shown == [4]

    run(test())


def test_a_stream_ends_with_an_event_for_each_image(run_folder: Path) -> None:
    async def test() -> None:
        async with openai_client(run_folder) as (client, _, _):
            stream = await client.images.generate(
                prompt=PROMPT, stream=True, n=2, size="96x96", partial_images=2, extra_body={"seed": 9}
            )
            completed = [event async for event in stream if event.type == "image_generation.completed"]
            assert sorted(event.model_extra["index"] for event in completed) == [0, 1]  # type: ignore[index]
            assert {opened(event.b64_json).size for event in completed} == {(96, 96)}
            assert [event.size for event in completed] == ["96x96"] * 2
            usage = [event.usage for event in completed]
            assert [(each.input_tokens, each.output_tokens, each.total_tokens) for each in usage] == [(7, 36, 43)] * 2
            assert completed[-1].model_extra["warnings"] == []  # type: ignore[index]
            assert completed[-1].model_extra["timings"]["total"] > 0  # type: ignore[index]

    run(test())


def test_guidance_that_sglang_means_as_off_is_off_with_a_warning(demo: ModelConfig) -> None:
    body = ImageRequest(prompt=PROMPT, guidance_scale=1.0, num_images_per_prompt=2, size="96×64")
    request, warnings = to_generate(to_parameters(body), "id", demo)
    assert (request.guidance, request.num_images, request.width, request.height) == (0, 2, 96, 64)
    assert warnings == (GUIDANCE_IS_OFF,)
    assert to_generate({"prompt": PROMPT, "guidance_scale": 2.5}, "id", demo)[0].guidance == 2.5


@pytest.mark.parametrize(
    ("arguments", "param", "message"),
    [
        ({"n": 11}, "n", "n must be between 1 and 10, got 11"),
        ({"size": "huge"}, "size", "size must be WIDTHxHEIGHT, as 512x768, got 'huge'"),
        ({"size": "5000x64"}, "size", "size 5000x64: width must be between 64 and 4096, got 5000"),
        ({"output_format": "svg"}, "output_format", "output_format must be 'png', 'jpeg' or 'webp', got 'svg'"),
        ({"extra_body": {"sede": 1}}, "sede", "unknown parameter 'sede': did you mean seed?"),
        ({"extra_body": {"seed": "one"}}, "seed", "seed must be a whole number, got 'one'"),
        ({"extra_body": {"seed": 10**30}}, "seed", f"seed must be between {-(2**63)} and {2**64 - 1}, got {10**30}"),
        ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps", "num_inference_steps must be between 1"),
        ({"extra_body": {"steps": 2, "num_inference_steps": 3}}, "steps", "steps 2 contradicts num_inference_steps"),
        ({"size": "64x64", "extra_body": {"width": 80}}, "width", "width 80 contradicts size, which says 64"),
        ({"partial_images": 1}, "partial_images", "partial_images needs stream to be true"),
        ({"stream": True, "n": 11}, "n", "n must be between 1 and 10, got 11"),
        ({"stream": True, "response_format": "url"}, "response_format", "response_format must be b64_json where"),
    ],
)
def test_a_bad_parameter_is_named(run_folder: Path, arguments: dict[str, Any], param: str, message: str) -> None:
    async def test() -> None:
        async with openai_client(run_folder) as (client, _, _):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.images.generate(prompt=PROMPT, **arguments)
            body: Any = caught.value.body
            assert body["message"].startswith(message)
            assert (caught.value.param, caught.value.code) == (param, "invalid_parameter")
            assert body["type"] == "invalid_request_error"

    run(test())


def test_other_errors_raise_what_openai_raises_for_them(run_folder: Path) -> None:
    async def test() -> None:
        async with openai_client(run_folder, api_keys=("secret",)) as (client, _, _):
            with pytest.raises(openai.NotFoundError) as missing:
                await client.images.generate(prompt=PROMPT, model="dall-e-3")
            assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.AuthenticationError, match="API key is not valid"):
                await client.with_options(api_key="guess").images.generate(prompt=PROMPT)
            models = await client.models.list()
            assert [model.id for model in models.data] == ["demo"]
            assert (await client.models.retrieve("demo")).object == "model"

    run(test())


def test_a_full_queue_says_when_to_come_back(run_folder: Path) -> None:
    async def test() -> None:
        async with openai_client(run_folder, limits=Limits(max_queue=1)) as (client, fakes, _):
            fakes.ranks[0].hold = True
            before = len(fakes.ranks[0].steps)
            first = asyncio.create_task(client.images.generate(prompt=PROMPT))
            await fakes.ranks[0].has_steps(before + 2)  # no more are sent, so the next one waits
            second = asyncio.create_task(client.images.generate(prompt=PROMPT))
            async with AsyncClient(fakes.address) as rpc:
                while (await rpc.status()).waiting < 1:
                    pass
            with pytest.raises(openai.RateLimitError) as caught:
                await client.images.generate(prompt=PROMPT)
            assert caught.value.code == "queue_full"
            assert int(caught.value.response.headers["retry-after"]) >= 1
            for call in (first, second):
                call.cancel()

    run(test())


def test_a_request_that_is_not_done_in_time(run_folder: Path) -> None:
    async def test() -> None:
        async with openai_client(run_folder) as (client, fakes, _):
            fakes.ranks[0].hold = True
            with pytest.raises(openai.InternalServerError) as caught:
                await client.images.generate(prompt=PROMPT, extra_body={"timeout_s": 0.05})
            assert (caught.value.status_code, caught.value.code) == (504, "timeout")
            stream = await client.images.generate(prompt=PROMPT, stream=True, extra_body={"timeout_s": 0.05})
            with pytest.raises(openai.APIError, match=r"not done within its timeout_s of 0\.05") as late:
                async for _ in stream:
                    pass
            assert late.value.code == "timeout"

    run(test())
