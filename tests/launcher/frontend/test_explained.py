"""Requests that ask where their time goes, beside some that do not, through a front-end and its client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import CancelledError
from launcher.client.async_client import AsyncClient
from launcher.client.explanation import ResultExplanation
from launcher.client.results import ImageFile, PreviewFile, Result
from launcher.client.trace import trace_events
from launcher.explanation import Explanation
from tests.launcher.client.explained import expect_trace, expect_whole
from tests.launcher.fake_ranks import DEADLINE_S, Fakes, fake_engine, run
from tests.launcher.frontend.late_rank import LateRank
from tests.launcher.http_servers import http_server

PROMPT = "a red circle on a blue background"


@asynccontextmanager
async def engine(run_folder: Path, **options: Any) -> AsyncIterator[tuple[Fakes, AsyncClient]]:
    async with fake_engine(run_folder, **options) as fakes, AsyncClient(fakes.address) as client:
        for rank in fakes.ranks:
            rank.encode_s = rank.denoise_s = rank.decode_s = 0.0  # no longer than passed
        yield fakes, client


def explanation_of(result: Result) -> ResultExplanation:
    assert result.explanation is not None
    expect_whole(result.explanation.told)
    expect_trace(trace_events([result.explanation]), result.explanation)
    return result.explanation


def test_only_who_asks_is_told_and_its_jobs_alone_ask_the_ranks(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder, tp=2) as (fakes, client):
            asked = await client.generate(PROMPT, seed=1, steps=3, num_images=2, explain=True)
            other = await client.generate(PROMPT, seed=9, steps=3)
            assert other.explanation is None
            told = explanation_of(asked).told
            assert {job.seed: job.explain for step in fakes.ranks[0].steps for job in step.start} == {
                1: True,
                2: True,
                9: False,
            }
            denoised = [stage for stage in told.stages if stage.name == "denoise"]
            assert sorted((stage.rank, stage.images, stage.steps) for stage in denoised) == [
                (rank, (0, 1), (step, step)) for rank in range(2) for step in range(1, 4)
            ]
            assert (told.mode, told.ranks, told.num_images) == ("tp2", 2, 2)
            assert told.total_s == pytest.approx(asked.timings["total"] + told.parts["check"])
            client_s = asked.explanation.client_s  # type: ignore[union-attr]
            assert client_s is not None
            assert sum(explanation_of(asked).parts.values()) == pytest.approx(client_s)

    run(test())


def test_steps_that_are_shared_say_with_how_many_images_of_others(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder) as (fakes, client):
            rank = fakes.ranks[0]
            rank.hold = True
            first = asyncio.create_task(client.generate(PROMPT, steps=1))  # so that the others begin together
            await rank.has_steps(1)
            calls = [
                asyncio.create_task(client.generate(PROMPT, steps=4, num_images=2, explain=explain))
                for explain in (True, False)
            ]
            async with asyncio.timeout(DEADLINE_S):
                while sum(fakes.frontend._requests.waiting_and_running) < 3:
                    await asyncio.sleep(0.01)
            rank.resume()
            await first
            result, _ = await asyncio.gather(*calls)
            told = explanation_of(result).told
            denoised = [stage for stage in told.stages if stage.name == "denoise"]
            assert max(stage.others for stage in denoised) == 2
            assert "shared with" in str(result.explanation)

    run(test())


def test_ranks_that_die_are_seen_in_what_the_request_is_told(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder, tp=2, replace_ranks=True) as (fakes, client):
            for rank in fakes.ranks:
                rank.hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=3, explain=True))
            for rank in fakes.ranks:
                await rank.has_steps(2)
                rank.release()
            await fakes.ranks[0].has_steps(3)
            fakes.ranks[0].fail("rank_failed", "rank 1: lost")
            told = explanation_of(await call).told
            denoised = [(stage.attempt, stage.steps) for stage in told.stages if stage.name == "denoise"]
            assert denoised.count((1, (1,))) == 2
            assert denoised[2:] == [(2, (step,)) for step in (1, 1, 2, 2, 3, 3)]
            assert told.attempt == 2
            assert any(stage.name == "lost" and stage.attempt == 1 for stage in told.stages)

    run(test())


@pytest.mark.parametrize("end", ["told", "lost", "cancelled"])
def test_the_last_image_waits_for_what_is_still_to_be_told(run_folder: Path, end: str) -> None:
    async def test() -> None:
        async with engine(run_folder, tp=2, make_rank=LateRank, replace_ranks=True) as (fakes, client):
            call = asyncio.create_task(client.generate(PROMPT, steps=1, request_id="r", explain=True))
            await fakes.ranks[1].has_steps(1)
            async with asyncio.timeout(DEADLINE_S):
                (request,) = fakes.frontend._requests._requests
                while not request.timings.seconds["total"]:  # of its file
                    await asyncio.sleep(0.01)
            assert not call.done()
            if end == "cancelled":
                await client.cancel("r")
                with pytest.raises(CancelledError):
                    await call
                return
            if end == "told":
                fakes.ranks[1].answer_late(fakes.ranks[1].steps[0])
            else:
                fakes.ranks[0].fail("rank_failed", "rank 1: lost")
            told = explanation_of(await call).told
            assert sum(stage.name == "denoise" for stage in told.stages) == (2 if end == "told" else 0)

    run(test())


def test_previews_change_nothing_and_a_repetition_is_told_the_same_without_times_of_its_own(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder) as (_, client):
            asked: Any = {"steps": 3, "seed": 1, "preview_every": 1, "idempotency_key": "k", "explain": True}
            events = [event async for event in client.stream(PROMPT, **asked)]
            assert sum(isinstance(event, ImageFile) for event in events) == 1
            assert any(isinstance(event, PreviewFile) for event in events)
            first = events[-1]
            assert isinstance(first, Result)
            again = await client.generate(PROMPT, **asked)
            assert explanation_of(again).told == explanation_of(first).told
            assert again.explanation is not None
            assert again.explanation.client_s is None
            assert "transfer" not in str(again.explanation)
            assert "previews" in explanation_of(first).told.notes[0]

    run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_who_asks_over_http_is_answered(run_folder: Path, stream: bool) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            asked = {"prompt": PROMPT, "steps": 2, "explain": True, "stream": stream}
            text = (await client.post("/v1/images/generations", json=asked)).text
            answer = json.loads(text.rpartition("data: ")[2])
            told = msgspec.convert(answer["explanation"], Explanation)
            expect_whole(told)
            assert told.total_s == pytest.approx(answer["timings"]["total"] + told.parts["check"])

    run(test())
