"""A small picture behind large ones that are to be decoded: it waits for one of them, and its timings say so."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from launcher.client.async_client import AsyncClient
from launcher.requests.timings import STAGES
from tests.launcher.demo_server import serve_demo
from tests.launcher.processes import PATIENCE_S

LARGE, COUNT = 512, 16  # sixteen of 1024², as it was found, take minutes on two cores


@pytest.mark.slow
def test_a_small_picture_of_one_step_does_not_wait_for_sixteen_large_ones_to_be_decoded() -> None:
    """Behind all sixteen it waited for ten to twenty large decodings, in no stage."""

    async def gauge(client: AsyncClient, name: str) -> float:
        text = (await client.metrics()).decode()
        (value,) = re.findall(rf"^{name} (\S+)", text, re.MULTILINE)
        return float(value)

    async def test(rpc: str) -> None:
        async with AsyncClient(rpc) as client:
            await client.generate("x", width=LARGE, height=LARGE, steps=1)
            large = [
                asyncio.create_task(client.generate("x", width=LARGE, height=LARGE, steps=1)) for _ in range(COUNT)
            ]
            async with asyncio.timeout(PATIENCE_S):
                while not (
                    await gauge(client, "krea2_decode_waiting") >= COUNT // 2
                    and await gauge(client, "krea2_decode_running")  # none for a moment between two
                ):
                    await asyncio.sleep(0.05)
            asked = time.monotonic()
            small = await client.generate("x", width=64, height=64, steps=1)
            waited = time.monotonic() - asked
            results = await asyncio.gather(*large)
            in_all = time.monotonic() - asked
            decodings = [one.timings["decode"] for one in results]
            print(f"{waited:.2f} of {in_all:.2f} s, {small.timings}")
            print(f"large decodings: {min(decodings):.2f} to {max(decodings):.2f} s")
            assert waited < 0.6 * in_all  # two steps of eight large ones that were sent already are most of it
            assert small.timings["decode_queue"] < 3 * max(decodings) + 1
            for one in (small, *results):
                assert sum(one.timings[stage] for stage in STAGES) == pytest.approx(one.timings["total"])

    with serve_demo() as server:
        asyncio.run(test(server.rpc))
