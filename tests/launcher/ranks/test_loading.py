"""How far ranks are with loading: what each tells, what the front-end makes of it, and who gets to know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ServerError
from launcher.client.async_client import AsyncClient
from launcher.http.answers.engine_link import EngineLink
from launcher.messages.message_parts import Stage
from launcher.messages.rank_messages import Hello, Loading
from launcher.ranks.loading import TELL_S, GroupLoading, LoadingReports
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, Fakes, fake_engine, run
from tests.launcher.http_servers import PATH, PROMPT, http_server_without_engine

GB = 10**9


class SlowRank(FakeRank):
    """Loads as far as a test says, and is ready when it says so."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, answer=False, **options)

    def load(self) -> None:
        pass

    def read(self, done: int, total: int) -> None:
        self.send(Loading(rank=self.rank, done=done, total=total))


async def stage_of(client: AsyncClient, expected: Callable[[Stage], bool]) -> Stage:
    """Wait until the stage is as expected."""
    async with asyncio.timeout(DEADLINE_S):
        while (stage := (await client.status()).stage) is None or not expected(stage):
            await asyncio.sleep(0.01)
    return stage


def test_a_rank_tells_ten_times_a_second_at_most_and_of_the_beginning_and_the_end() -> None:
    now, told = 0.0, list[Loading]()
    reports = LoadingReports(3, told.append, clock=lambda: now)
    for done in range(1001):
        reports.tell(done, 1000)
        reports.tell(done, 1000)
        now += TELL_S / 10
    assert told[0] == Loading(rank=3, done=0, total=1000)
    assert told[-1] == Loading(rank=3, done=1000, total=1000)
    assert len(told) == len({report.done for report in told})
    assert 90 <= len(told) <= 1 + 1000 / 10 + 1


def test_a_rank_without_weights_of_its_own_is_done_at_once() -> None:
    told = list[Loading]()
    LoadingReports(0, told.append).tell(0, 0)
    assert told == [Loading(rank=0, done=0, total=0)]


def test_the_sum_is_known_once_all_ranks_have_told_and_never_falls() -> None:
    group = GroupLoading(3)
    sums = []
    for rank, done in ((0, 0), (0, 10), (1, 0), (1, 20), (2, 0), (0, 30), (2, 5), (1, 60), (2, 10), (0, 90)):
        group.note(Loading(rank=rank, done=done, total=(90, 60, 10)[rank]))
        sums.append(group.read)
    assert sums[:4] == [(0, 0)] * 4
    assert {total for _, total in sums[4:]} == {160}
    assert all(before <= after for (before, _), (after, _) in pairwise(sums))
    assert sums[-1] == (160, 160)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (Stage(name="starting"), "starting"),
        (Stage(name="loading", done=13_460_000_000, total=33_100_000_000), "loading 13.5 of 33.1 GB (40 %)"),
        (Stage(name="loading", done=999_999_999, total=GB), "loading 1.0 of 1.0 GB (99 %)"),
        (Stage(name="loading", done=12_000_000, total=26_000_000), "loading 12.0 of 26.0 MB (46 %)"),
        (Stage(name="warming up", done=GB, total=GB), "warming up"),
    ],
)
def test_a_stage_is_said_in_a_few_words(stage: Stage, said: str) -> None:
    assert stage.describe() == said


@pytest.mark.parametrize("warm_up", [False, True])
def test_all_who_ask_hear_how_far_the_ranks_are(run_folder: Path, warm_up: bool) -> None:
    stages = list[Stage]()

    async def is_told(fakes: Fakes, client: AsyncClient) -> None:
        first, second = fakes.ranks
        assert (await client.status()).not_ready == "its ranks start"
        for rank in fakes.ranks:
            rank.send(Hello(rank=rank.rank))
        assert await stage_of(client, lambda stage: True) == Stage(name="starting")
        first.read(0, 2 * GB)
        first.read(GB, 2 * GB)
        second.read(0, GB)
        assert await stage_of(client, lambda stage: stage.done > 0) == Stage(name="loading", done=GB, total=3 * GB)
        assert (await client.status()).not_ready == "its ranks start, loading 1.0 of 3.0 GB (33 %)"
        async with http_server_without_engine(fakes.address) as http, asyncio.timeout(DEADLINE_S):
            while "stage" not in (answer := await http.get("/ready")).json():
                await asyncio.sleep(0.01)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert answer.json()["stage"] == {"name": "loading", "done": GB, "total": 3 * GB}
            assert answer.json()["error"]["message"] == (
                "the engine is not ready: its ranks start, loading 1.0 of 3.0 GB (33 %)"
            )
            refused = await http.post(PATH, json={"prompt": PROMPT})
            assert refused.json()["error"]["message"] == (
                "the engine is starting, loading 1.0 of 3.0 GB (33 %): try again in a moment"
            )
        second.read(GB, GB)
        first.read(2 * GB, 2 * GB)
        last = Stage(name="warming up" if warm_up else "loading", done=3 * GB, total=3 * GB)
        assert await stage_of(client, lambda stage: stage.done == stage.total > 0) == last
        for rank in fakes.ranks:
            rank.send(rank.ready())
        async with asyncio.timeout(DEADLINE_S):
            while (await client.status()).not_ready not in (None, "it warms up"):
                await asyncio.sleep(0.01)
        assert stages[-1] == last
        if not warm_up:
            assert (await client.status()).stage is None

    async def test() -> None:
        engine = fake_engine(run_folder, tp=2, make_rank=SlowRank, on_stage=stages.append, wait=False, warm_up=warm_up)
        async with engine as fakes, AsyncClient(fakes.address) as client:
            await is_told(fakes, client)

    run(test())
    known = [stage for stage in stages if stage.total]
    assert {stage.total for stage in known} == {3 * GB}
    assert all(before.done <= after.done for before, after in pairwise(known))
    assert stages[: -len(known)] == [Stage(name="starting")] * (len(stages) - len(known))


def test_ranks_that_take_the_places_of_lost_ones_tell_too_but_the_start_is_over(run_folder: Path) -> None:
    stages = list[Stage]()

    def make_rank(*arguments: Any, generation: int = 0) -> FakeRank:
        return (SlowRank if generation else FakeRank)(*arguments, generation=generation)

    async def test() -> None:
        engine = fake_engine(run_folder, make_rank=make_rank, replace_ranks=True, on_stage=stages.append)
        async with engine as fakes, AsyncClient(fakes.address) as client:
            heard = len(stages)
            fakes.ranks[0].fail("rank_failed", "rank 0: lost")
            await fakes.has_generation(1)
            (rank,) = fakes.ranks
            rank.send(Hello(rank=0))
            rank.read(GB, 4 * GB)
            await stage_of(client, lambda stage: stage.done > 0)
            said = "lost ranks are being replaced, loading 1.0 of 4.0 GB (25 %)"
            assert (await client.status()).not_ready == said
            rank.send(rank.ready())
            async with asyncio.timeout(DEADLINE_S):
                while not (await client.status()).ready:
                    await asyncio.sleep(0.01)
            assert len(stages) == heard

    run(test())


def test_a_link_that_has_heard_nothing_only_says_that_the_engine_starts() -> None:
    async def test() -> None:
        link = EngineLink("ipc:///nonexistent/krea2", None)
        link._asked.set()
        with pytest.raises(ServerError, match=r"^the engine is starting: try again in a moment$"):
            await link.loaded()

    run(test())
