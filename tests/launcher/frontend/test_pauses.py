"""A front-end that was stopped for a while: what was in flight goes on, since nobody could be heard meanwhile."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from engine.errors import LaunchError, RequestTimeoutError
from launcher.client.async_client import AsyncClient
from launcher.messages.client_messages import Generate
from launcher.messages.encoding import encode
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, fake_engine, run
from tests.launcher.frontend.fake_clock import LONG_S, FakeClock
from tests.launcher.http_servers import PROMPT

SHORT_S = 60.0  # beside a pause


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock(monkeypatch)


def test_neither_leases_nor_steps_are_over_because_the_front_end_was_stopped(
    run_folder: Path, clock: FakeClock
) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder, lease_s=SHORT_S, step_timeout_s=SHORT_S) as fakes,
            AsyncClient(fakes.address) as other,
        ):
            rank = fakes.ranks[0]
            rank.hold = True
            socket = fakes.raw()
            await socket.send(encode(Generate(request_id="silent", prompt=PROMPT, steps=2)))
            await rank.has_steps(2)
            await clock.pause()
            assert (await other.status()).running == 1
            assert not fakes.served.done()
            rank.resume()
            async with asyncio.timeout(DEADLINE_S):
                while (status := await other.status()).running:
                    await asyncio.sleep(0.01)
            assert (status.done, status.failed) == (1, 0)

    run(test())


def test_ranks_have_as_long_to_start_as_ever(run_folder: Path, clock: FakeClock) -> None:
    async def test() -> None:
        async def start() -> None:
            silent = partial(FakeRank, answer=False)
            async with fake_engine(run_folder, start_timeout_s=SHORT_S, make_rank=silent):
                pass

        starting = asyncio.create_task(start())
        await asyncio.sleep(0.1)
        await clock.pause()
        assert not starting.done()
        await clock.forward(SHORT_S)
        with pytest.raises(LaunchError, match="rank 0 was not ready within"):
            await starting

    run(test())


def test_the_timeout_that_a_request_asks_for_goes_on(run_folder: Path, clock: FakeClock) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            call = asyncio.create_task(client.generate(PROMPT, timeout_s=LONG_S))
            await fakes.ranks[0].has_steps(1)
            await clock.pause()
            with pytest.raises(RequestTimeoutError):
                await call

    run(test())
