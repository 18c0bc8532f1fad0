"""A small picture behind large ones that are to be decoded: it waits for one of them, and its timings say so."""

from __future__ import annotations

import asyncio
import re

import pytest

from launcher.client.async_client import AsyncClient
from launcher.client.results import Result
from launcher.messages.client_messages import Progress
from launcher.requests.timings import STAGES
from tests.launcher.demo_server import serve_demo
from tests.launcher.processes import PATIENCE_S, connect_async

LARGE, COUNT = 512, 16  # sixteen of 1024², as it was found, take minutes on two cores


@pytest.mark.slow
def test_a_small_picture_of_one_step_does_not_wait_for_sixteen_large_ones_to_be_decoded() -> None:
    """Behind all sixteen it waited for ten to twenty large decodings, in no stage."""

    async def gauge(client: AsyncClient, name: str) -> float:
        text = (await client.metrics()).decode()
        (value,) = re.findall(rf"^{name} (\S+)", text, re.MULTILINE)
        return float(value)

    events: list[tuple[int, str]] = []  # the side of an image, and what became of it

    async def make(client: AsyncClient, side: int) -> Result:
        async for event in client.stream("x", width=side, height=side, steps=1):
            if isinstance(event, Progress):
                events.append((side, "denoised"))
            elif isinstance(event, Result):
                events.append((side, "made"))
                return event
        raise AssertionError

    async def test(rpc: str) -> None:
        async with connect_async(rpc) as client:
            await client.generate("x", width=LARGE, height=LARGE, steps=1)
            large = [asyncio.create_task(make(client, LARGE)) for _ in range(COUNT)]
            async with asyncio.timeout(PATIENCE_S):
                while not (
                    await gauge(client, "krea2_decode_waiting") >= COUNT // 2
                    and await gauge(client, "krea2_decode_running")  # none for a moment between two
                ):
                    await asyncio.sleep(0.05)
            small = await make(client, 64)
            results = await asyncio.gather(*large)
            of_small = [index for index, (side, _) in enumerate(events) if side == 64]  # its image may be told of first
            meanwhile = events[of_small[0] : of_small[-1]].count((LARGE, "made"))
            print(f"{meanwhile} of {COUNT} large ones came between the small one's last step and its image")
            assert meanwhile < COUNT // 2
            for one in (small, *results):
                assert sum(one.timings[stage] for stage in STAGES) == pytest.approx(one.timings["total"])

    with serve_demo() as server:
        asyncio.run(test(server.rpc))
