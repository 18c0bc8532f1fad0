"""An HTTP server in the test's own event loop, in front of a fake engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from engine.config.engine_config import EngineConfig
from launcher.http.app import make_server
from launcher.http.server_process import listen
from launcher.messages.configs import HttpConfig
from launcher.messages.limits import Limits
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine
from tests.launcher.processes import temporary_folder

PATH = "/v1/images/generations"
PROMPT = "a red circle on a blue background"


@asynccontextmanager
async def http_server(rpc: str, **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that speaks to the front-end at `rpc`, once that is ready to make images."""
    async with http_server_without_engine(rpc, **config) as client:
        async with asyncio.timeout(DEADLINE_S):
            while (await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.01)
        yield client


@asynccontextmanager
async def http_server_without_engine(rpc: str, **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The same, without waiting for the engine."""
    keys = config.get("api_keys", ())
    with temporary_folder() as folder, listen("127.0.0.1", 0) as listening:
        own = {"engine": EngineConfig(), "limits": Limits(), "rpc": rpc, "run_folder": str(folder)}
        server = make_server(HttpConfig(**own | config))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        served = asyncio.create_task(server.serve(sockets=[listening]))
        headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        try:
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=DEADLINE_S) as client:
                yield client
        finally:
            server.should_exit = True
            async with asyncio.timeout(DEADLINE_S):
                await served


@contextmanager
def in_a_thread(run_folder: Path, **config: Any) -> Iterator[str]:
    """The url of a server with ranks that compute nothing, in an event loop of another thread."""
    started, addresses, over = threading.Event(), [], asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            http_server(fakes.address, **config) as client,
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


def events_of(text: str) -> list[tuple[str, Any]]:
    """Name and data of each server-sent event."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found
