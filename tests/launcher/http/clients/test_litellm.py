"""The litellm package, which is slow to import: its requests are in `tables/libraries.py`, and errors in
`test_openai_images`, for the fast run."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.client.async_client import AsyncClient
from launcher.messages.limits import Limits
from tests.launcher.fake_ranks import Fakes, fake_engine, run
from tests.launcher.http.clients.litellm_process import LiteLlm, litellm_process
from tests.launcher.http.clients.tables.rows import GENERATIONS, SECRET, picture
from tests.launcher.http.clients.tables.rows import drawn as picture_file
from tests.launcher.http_servers import PROMPT, http_server, http_server_without_engine

pytestmark = pytest.mark.slow
NAMES = ("krea-2-turbo",)
AS_WHOM = {"model": "openai/krea-2-turbo", "api_key": SECRET}
ASK = AS_WHOM | {"prompt": PROMPT, "max_retries": 0}
CHAT = AS_WHOM | {"messages": [{"role": "user", "content": PROMPT}], "max_retries": 0}
DATA_URI = "data:image/"


@pytest.fixture(scope="module")
def litellm() -> Iterator[LiteLlm]:
    with litellm_process() as litellm:
        yield litellm


class Asking:
    """Asks a server with litellm."""

    def __init__(self, litellm: LiteLlm, base: str) -> None:
        self._litellm, self._base = litellm, base

    async def __call__(self, function: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(self._litellm.call, function, **{"api_base": self._base, **arguments})


@asynccontextmanager
async def serving(run_folder: Path, litellm: LiteLlm, **limits: int) -> AsyncIterator[tuple[Asking, Fakes, Any]]:
    own = Limits(**limits)
    async with (
        fake_engine(run_folder, limits=own) as fakes,
        http_server(fakes.address, limits=own, model_names=NAMES, api_keys=(SECRET,)) as client,
    ):
        yield Asking(litellm, f"{client.base_url}/v1"), fakes, client


def drawn(answer: Any, **picked: Any) -> None:
    for image in answer["data"]:
        assert image["url"] is None
        picture(base64.b64decode(image["b64_json"]), **picked)


def test_images_and_their_tokens(run_folder: Path, litellm: LiteLlm) -> None:
    async def test() -> None:
        async with serving(run_folder, litellm) as (ask, _, _):
            answer = await ask("image_generation", **ASK, n=2, size="192x128")
            drawn(answer)
            assert (len(answer["data"]), answer["size"]) == (2, "192x128")
            usage = answer["usage"]
            assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > usage["input_tokens"] > 0
            own = {"seed": 5, "num_inference_steps": 4}
            openais = {"quality": "high", "output_format": "webp", "user": "a", "background": "transparent"}
            drawn(await ask("aimage_generation", **ASK, **openais, extra_body=own), kind="WEBP")

    run(test())


def test_edits(run_folder: Path, litellm: LiteLlm) -> None:
    async def test() -> None:
        async with serving(run_folder, litellm) as (ask, _, _):
            image, mask = (
                base64.b64encode(file).decode() for file in (picture_file(), picture_file(mode="L", colour=255))
            )
            for function in ("image_edit", "aimage_edit"):
                answer = await ask(function, **ASK, image=image, n=2, size="192x128")
                drawn(answer)
                assert len(answer["data"]) == 2
                assert answer["usage"]["input_tokens_details"]["image_tokens"] > 0
            own = {"mask": mask, "output_format": "webp", "quality": "high", "extra_body": {"strength": 0.5, "seed": 5}}
            drawn(await ask("aimage_edit", **ASK, image=image, **own), kind="WEBP")
            told = await ask("aimage_edit", **ASK, image=base64.b64encode(b"no picture").decode())
            assert told[:2] == ["BadRequestError", 400]
            assert "image" in told[2]

    run(test())


def test_its_router(run_folder: Path, litellm: LiteLlm) -> None:
    async def test() -> None:
        async with serving(run_folder, litellm) as (ask, _, client):
            known = AS_WHOM | {"api_base": f"{client.base_url}/v1"}
            models = [{"model_name": "krea", "litellm_params": known}]
            drawn(await ask("Router.aimage_generation", model_list=models, model="krea", prompt="test from litellm"))

    run(test())


def test_a_chat(run_folder: Path, litellm: LiteLlm) -> None:
    async def test() -> None:
        async with serving(run_folder, litellm) as (ask, _, _):
            answer = await ask("acompletion", **CHAT)
            assert DATA_URI in json.dumps(answer["choices"][0]["message"])
            chunks = await ask("acompletion", **CHAT, stream=True)
            said = "".join(chunk["choices"][0]["delta"]["content"] or "" for chunk in chunks)
            assert DATA_URI in said

    run(test())


def test_errors_are_of_its_classes_and_say_what_is_wrong(run_folder: Path, litellm: LiteLlm) -> None:
    async def test() -> None:
        async with serving(run_folder, litellm) as (ask, _, _):
            for function, arguments, kind, status, words in (
                ("aimage_generation", ASK | {"size": "7x9"}, "BadRequestError", 400, "64 and 4096, got 7"),
                ("aimage_generation", ASK | {"api_key": "a"}, "AuthenticationError", 401, "API key is not valid"),
                ("aimage_generation", ASK | {"model": "openai/x"}, "NotFoundError", 404, "must be krea-2-turbo"),
                ("acompletion", CHAT | {"messages": []}, "BadRequestError", 400, "messages"),
            ):
                told = await ask(function, **arguments)
                assert told[:2] == [kind, status]
                assert words in told[2]

    run(test())


def test_errors_of_a_server_that_is_full(run_folder: Path, litellm: LiteLlm) -> None:
    async def test() -> None:
        async with serving(run_folder, litellm, max_queue=1) as (ask, fakes, client):
            fakes.ranks[0].hold = True
            before = len(fakes.ranks[0].steps)
            first = asyncio.create_task(client.post(GENERATIONS, json={"prompt": PROMPT}))
            await fakes.ranks[0].has_steps(before + 2)  # no more are sent, so the next one waits
            second = asyncio.create_task(client.post(GENERATIONS, json={"prompt": PROMPT}))
            async with AsyncClient(fakes.address) as rpc:
                while (await rpc.status()).waiting < 1:
                    pass
            kind, status, message = await ask("aimage_generation", **ASK)
            assert (kind, status) == ("RateLimitError", 429)
            assert "the queue is full" in message
            for call in (first, second):
                call.cancel()

    run(test())


def test_errors_of_a_server_whose_engine_is_away(litellm: LiteLlm) -> None:
    async def test() -> None:
        async with http_server_without_engine("ipc:///nonexistent/krea2", model_names=NAMES) as client:
            told = await Asking(litellm, f"{client.base_url}/v1")("aimage_generation", **ASK)
            assert told[:2] == ["ServiceUnavailableError", 503]
            assert "the engine" in told[2]

    run(test())
