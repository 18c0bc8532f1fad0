"""A client of the openai package, in front of a server with ranks that compute nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
from PIL import Image

from launcher.messages.limits import Limits
from tests.launcher.fake_ranks import Fakes, fake_engine
from tests.launcher.http_servers import http_server


@asynccontextmanager
async def openai_client(
    run_folder: Path, limits: Limits | None = None, **config: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, Fakes, httpx.AsyncClient]]:
    limits = limits or Limits()
    key = config.get("api_keys", ("any",))[0]
    async with (
        fake_engine(run_folder, limits=limits) as fakes,
        http_server(fakes.address, limits=limits, **config) as client,
        openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key=key, max_retries=0) as openai_client,
    ):
        yield openai_client, fakes, client


def opened(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))
