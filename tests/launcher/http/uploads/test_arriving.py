"""Large bodies that arrive at the same time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest

from launcher.http.uploads import arriving
from tests.launcher.fake_ranks import DEADLINE_S, run
from tests.launcher.http.http_requests import JSON, NOWHERE, error_of
from tests.launcher.http.test_bodies import raw_request
from tests.launcher.http_servers import PATH, http_server_without_engine


def test_large_bodies_that_take_long_make_room_for_those_that_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "MOST_AT_ONCE", 3_000_000)
    monkeypatch.setattr(arriving, "PATIENCE_S", math.inf)
    came, grew = asyncio.Event(), arriving.Arriving.grew

    def count(self: arriving.Arriving, body: asyncio.Timeout, began: float, size: int) -> None:
        grew(self, body, began, size)
        if size > 2_400_000:
            came.set()

    monkeypatch.setattr(arriving.Arriving, "grew", count)

    async def most_of_it() -> AsyncIterator[bytes]:
        yield b" " * 2_500_000
        await asyncio.sleep(DEADLINE_S)

    async def test() -> None:
        async with (
            asyncio.timeout(DEADLINE_S),
            http_server_without_engine(NOWHERE, max_body_bytes=5000) as client,
        ):
            slow = asyncio.create_task(raw_request(client, b"Content-Length: 2600000\r\n", most_of_it()))
            await came.wait()
            answer = await client.post(PATH, content=b" " * 2_500_000, headers=JSON)
            assert answer.status_code == 429
            assert error_of(answer)["message"].startswith("too many pictures are being sent")
            monkeypatch.setattr(arriving, "PATIENCE_S", 0.0)
            answer = await client.post(PATH, content=b" " * 2_500_000, headers=JSON)
            assert answer.status_code == 400
            assert b'"code":"body_timeout"' in await slow

    run(test())
