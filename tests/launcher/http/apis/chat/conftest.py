"""One server for all tests of chats, and the openai package as its client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.launcher.http_servers import in_a_thread
from tests.launcher.processes import temporary_folder

MODEL = "krea-2-turbo"


@pytest.fixture(scope="package")
def url() -> Iterator[str]:
    with temporary_folder() as folder, in_a_thread(Path(folder), model_names=(MODEL, "gpt-image-1")) as url:
        yield url


@pytest.fixture(scope="package")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client
