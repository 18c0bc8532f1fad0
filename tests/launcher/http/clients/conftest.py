"""One server for all rows: in front of fake ranks, or the demo's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.launcher.fake_ranks import DEADLINE_S, fake_engine
from tests.launcher.http_servers import http_server
from tests.launcher.processes import temporary_folder

NAMES = (
    "krea-2-turbo",
    "dall-e-3",
    "gpt-image-1",
    "dall-e-2",
    "gpt-image-1-mini",
    "gpt-image-2",
    "gpt-4.1-nano",
)  # TODO


@pytest.fixture(scope="package")
def url() -> Iterator[str]:
    """Of a server under the names that clients expect, which takes any other as well."""
    with temporary_folder() as folder, _in_a_thread(Path(folder)) as url:
        yield url


@contextmanager
def _in_a_thread(run_folder: Path) -> Iterator[str]:
    """Serve in an event loop of another thread."""
    started, addresses, over = threading.Event(), [], asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            http_server(fakes.address, model_names=NAMES) as client,
        ):
            addresses.append(str(client.base_url).rstrip("/"))
            started.set()
            await over.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(DEADLINE_S)
        assert addresses, "the server did not start"
        yield addresses[0]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(over.set)
        thread.join(DEADLINE_S)
