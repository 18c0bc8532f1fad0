"""Clients that hang up: their requests are cancelled."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.launcher.fake_ranks import DEADLINE_S, Fakes, fake_engine, run
from tests.launcher.http.http_requests import JSON, head
from tests.launcher.http_servers import PATH, PROMPT, http_server


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_cancels_the_request(run_folder: Path, stream: bool) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            body = json.dumps({"prompt": PROMPT, "steps": 5, "stream": stream, "progress": stream}).encode()
            fakes.ranks[0].hold = True
            async with asyncio.timeout(DEADLINE_S):
                address = client.base_url
                reader, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(head(address, b"Content-Length: %d\r\n" % len(body)) + body)
                await until_running(fakes, 1)
                if stream:
                    assert b" 200 " in await reader.readline()
                writer.close()
                await until_running(fakes, 0)

    run(test())


def test_who_hangs_up_and_repeats_under_the_same_id_never_gets_the_end_of_the_first(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            body = json.dumps({"prompt": PROMPT, "steps": 2}).encode()
            address = client.base_url
            for _ in range(20):
                before = len(fakes.ranks[0].steps)
                _, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(head(address, b"X-Request-ID: same\r\nContent-Length: %d\r\n" % len(body)) + body)
                await fakes.ranks[0].has_steps(before + 1)
                writer.close()
                again = await client.post(PATH, content=body, headers=JSON | {"X-Request-ID": "same"})
                assert again.status_code == 200, again.text
            async with asyncio.timeout(DEADLINE_S):
                await until_running(fakes, 0)

    run(test())


async def until_running(fakes: Fakes, count: int) -> None:
    """Wait until the front-end has `count` requests that have not ended."""
    client = await fakes.client()
    try:
        while True:
            status = await client.status()
            if status.waiting + status.running == count:
                return
            await asyncio.sleep(0.01)
    finally:
        await client.close()
