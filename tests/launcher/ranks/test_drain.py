"""A server that is stopped: what runs is finished, for as long as the drain lasts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.errors import ServerError
from launcher.client.async_client import AsyncClient
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run
from tests.launcher.ranks.losing_ranks import PROMPT


def test_a_server_that_is_stopped_finishes_what_runs_and_refuses_the_rest(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, drain_s=DEADLINE_S) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            running = asyncio.create_task(client.generate(PROMPT, steps=2, seed=1))
            await rank.has_steps(2)
            queued = asyncio.create_task(client.generate(PROMPT, steps=2, seed=2))
            while (await client.status()).waiting != 1:
                pass
            fakes.stop.set()
            with pytest.raises(ServerError, match="being stopped"):
                await queued
            with pytest.raises(ServerError, match="being stopped"):
                await client.generate(PROMPT)
            assert not (await client.status()).ready
            rank.hold = False
            rank.release(2)
            assert (await running).seed == 1
            async with asyncio.timeout(DEADLINE_S):
                await fakes.served

    run(test())


def test_what_runs_longer_than_the_drain_is_ended(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, drain_s=0.2) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            running = asyncio.create_task(client.generate(PROMPT, steps=2))
            await fakes.ranks[0].has_steps(2)
            fakes.stop.set()
            with pytest.raises(ServerError, match="the server was stopped"):
                await running
            async with asyncio.timeout(DEADLINE_S):
                await fakes.served

    run(test())
