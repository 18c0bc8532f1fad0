"""The sizes that clients send by habit, over HTTP, to a model that was made for small images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.config.model_config import ModelConfig
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.http_servers import PROMPT, http_server

BODY = {"prompt": PROMPT, "steps": 1}


def test_openais_are_the_models_own_and_any_other_is_drawn_as_it_is(run_folder: Path, demo: ModelConfig) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:

            async def ask(**body: Any) -> tuple[str, list[str]]:
                answer = (await client.post("/v1/images/generations", json=BODY | body)).json()
                return answer["size"], answer["warnings"]

            for asked, drawn in {"1024x1024": "128x128", "1024x1536": "128x192"}.items():
                size, (warning,) = await ask(size=asked)
                assert size == drawn
                assert warning.startswith(f"size {asked} was drawn as {drawn}, since it is outside of what the model")
            assert await ask(size="auto") == ("128x128", [])
            assert await ask(size="256x256") == ("256x256", [])
            assert demo.size_domain is not None
            outside = ("272x512", [demo.size_domain.warning(272, 512)])
            assert await ask(size="272x512") == await ask(width=272, height=512) == outside
            own = {"width": 512, "height": 512}
            assert await ask(**own) == await ask(**own, size="512x512")
            assert (await ask(**own))[0] == "512x512"

    run(test())


def test_a_stream_says_it_with_its_last_image(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            body = BODY | {"size": "1792x1024", "stream": True}
            events = (await client.post("/v1/images/generations", json=body)).text.split("\n\n")
            last = json.loads(events[-2].partition("data: ")[2])
            assert last["size"] == "224x128"
            assert "size 1792x1024 was drawn as 224x128" in last["warnings"][0]

    run(test())
