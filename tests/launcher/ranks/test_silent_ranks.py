"""Lifelines between machines over which nothing comes any more, though nothing has broken them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from engine.errors import RankError
from launcher.messages.encoding import encode
from launcher.messages.rank_messages import Alive, decode_report, door_path
from launcher.ranks import remote_ranks
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run
from tests.launcher.ranks.test_remote_ranks import HOLD_LIFELINE, door_of, lifeline, read_door, receive


@pytest.fixture(autouse=True)
def _master(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def test_a_rank_that_is_silent_is_gone_and_no_other(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_ranks, "SILENT_S", 2.0)

    async def test() -> None:
        async with (
            fake_engine(run_folder, tp=2, ranks_host="127.0.0.1") as fakes,
            lifeline(read_door(run_folder), 1) as wire,
        ):
            for _ in range(8):
                await asyncio.sleep(0.4)
                await wire.send(encode(Alive(rank=1)))
            assert not fakes.served.done()
            with pytest.raises(RankError, match=r"^rank 1 died, or its machine cannot be reached$"):
                await fakes.served

    run(test())


def test_a_rank_says_that_it_lives_and_ends_when_the_front_end_falls_silent(run_folder: Path) -> None:
    quick = "from launcher.ranks import remote_ranks\nremote_ranks.SILENT_S, remote_ranks._BEAT_S = 1.0, 0.1\n"

    async def test() -> None:
        async with door_of(run_folder) as (server, _, remote):
            command = [sys.executable, "-c", quick + HOLD_LIFELINE, door_path(str(run_folder)), str(DEADLINE_S)]
            rank = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
            for _ in range(3):
                assert decode_report((await receive(server))[1]) == Alive(rank=1)
                remote.came(1)
                remote.lost()  # which answers again, however long the rank took
            async with asyncio.timeout(DEADLINE_S):
                _, stderr = await rank.communicate()
            assert (rank.returncode, stderr.decode()) == (1, "rank 1 ends: it has lost the front-end\n")

    run(test())
