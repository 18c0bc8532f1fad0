"""A request that would not be done in time is refused at once, and nobody else notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest

from engine.errors import Krea2Error, QueueFullError, RateLimitedError, RequestTimeoutError
from launcher.client.async_client import AsyncClient
from launcher.client.results import Result
from launcher.messages.client_messages import Accepted
from tests.launcher.fake_ranks import Fakes, fake_engine, run
from tests.launcher.http_servers import http_server

PROMPT = "a red circle on a blue background"


async def teach(client: AsyncClient) -> None:
    """Let the front-end learn what a step takes."""
    await client.generate(PROMPT, steps=2)


async def fill(fakes: Fakes, client: AsyncClient, requests: int, steps: int) -> list[asyncio.Task[Result]]:
    """Let requests run and wait that will not end."""
    fakes.ranks[0].hold = True
    already = await unfinished(client)
    calls = [
        asyncio.create_task(client.generate(PROMPT, steps=steps, num_images=8, width=512, height=512))
        for _ in range(requests)
    ]
    while await unfinished(client) < already + requests:
        pass
    return calls


async def unfinished(client: AsyncClient) -> int:
    status = await client.status()
    return status.running + status.waiting


def test_a_request_that_others_keep_from_being_done_in_time_is_told_when_to_come_back(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            await teach(client)
            sent = len(fakes.ranks[0].steps) + 2
            calls = await fill(fakes, client, 5, steps=100)
            await fakes.ranks[0].has_steps(sent)
            with pytest.raises(QueueFullError, match=r"^the request would be done in about .* try again in") as refused:
                await client.generate(PROMPT, steps=8, priority=-1, timeout_s=20)
            assert refused.value.retry_after_s is not None
            assert refused.value.retry_after_s > 20
            assert refused.value.parameter is None
            assert len(fakes.ranks[0].steps) == sent
            assert await unfinished(client) == 5
            assert (await client.status()).failed == 0
            patient = await anext(client.stream(PROMPT, steps=8, priority=-1, timeout_s=3000))
            assert isinstance(patient, Accepted)
            urgent = await anext(client.stream(PROMPT, steps=8, priority=100, timeout_s=60))
            assert isinstance(urgent, Accepted)  # which others let pass
            for call in calls:
                call.cancel()

    run(test())


def test_the_place_and_the_time_of_others_stay_as_they_are(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            await teach(client)
            calls = await fill(fakes, client, 3, steps=50)
            follower = client.stream(PROMPT, steps=20, priority=-50)
            before = await anext(follower)
            assert isinstance(before, Accepted)
            for priority in (-100, -50, 0, 100):
                with pytest.raises(QueueFullError):
                    await client.generate(PROMPT, steps=200, priority=priority, num_images=10, timeout_s=1)
            after = await anext(client.stream(PROMPT, steps=20, priority=-51))
            assert isinstance(after, Accepted)
            assert after.position == before.position + 1
            for call in calls:
                call.cancel()

    run(test())


def test_a_request_that_takes_too_long_by_itself_is_told_so(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            AsyncClient(fakes.address) as client,
            http_server(fakes.address) as http,
            openai.AsyncOpenAI(api_key="none", base_url=f"{http.base_url}/v1") as patient,
        ):
            fakes.ranks[0].denoise_s = 2.5
            await teach(client)
            sent = len(fakes.ranks[0].steps)
            with pytest.raises(QueueFullError, match=r"about 25\d s by itself, and its timeout_s is 2:") as refused:
                await client.generate(PROMPT, steps=100, timeout_s=2)
            assert refused.value.parameter == "timeout_s"
            with pytest.raises(openai.RateLimitError) as told:
                await patient.images.generate(prompt=PROMPT, extra_body={"steps": 100, "timeout_s": 2})
            assert (told.value.status_code, told.value.code, told.value.param) == (429, "queue_full", "timeout_s")
            assert int(told.value.response.headers["retry-after"]) >= 200
            assert told.value.response.headers["x-should-retry"] == "false"
            assert len(fakes.ranks[0].steps) == sent
            metrics = (await client.metrics()).decode()
            assert 'krea2_requests_total{outcome="queue_full"} 2.0' in metrics  # so the openai client did not repeat it
            assert (await client.generate(PROMPT, steps=100, timeout_s=210)).seeds  # an estimate may be 1/4 too long
            with pytest.raises(QueueFullError, match=r"about 25\d s by itself, and its timeout_s is 120:"):
                await client.generate(PROMPT, steps=100, timeout_s=120)
            cache = {"method": "velocity", "warmup_steps": 10, "max_consecutive": 3}
            (saved,) = (await client.generate(PROMPT, steps=100, timeout_s=120, cache=cache)).computed
            assert saved is not None
            uncomputed = saved.of - saved.block_evaluations
            assert uncomputed > saved.of / 2
            metrics = (await client.metrics()).decode()
            assert f'krea2_step_blocks_total{{kind="saved"}} {float(uncomputed)}' in metrics

    run(test())


def test_what_is_refused_as_too_late_is_not_among_its_key_s_requests_of_the_minute(
    run_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "limits.toml"
    file.touch()

    async def test() -> None:
        async with fake_engine(run_folder, key_limits=str(file)) as fakes, AsyncClient(fakes.address) as client:
            await teach(client)
            file.write_text("[default]\nrequests_per_minute = 0.01")  # one, and for long no other
            for read in fakes.frontend.key_files.values():
                read()
            for _ in range(3):
                with pytest.raises(QueueFullError, match="its timeout_s is 2"):
                    await client.generate(PROMPT, steps=100, timeout_s=2)
            await teach(client)
            with pytest.raises(RateLimitedError):
                await teach(client)

    run(test())


def test_while_speeds_are_not_known_nothing_is_refused(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            with pytest.raises(RequestTimeoutError):
                await client.generate(PROMPT, steps=200, timeout_s=0.01)

    run(test())


def test_a_server_that_was_slow_for_a_while_does_not_refuse_all_for_good(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].denoise_s = 2.5
            await teach(client)
            outcomes: list[str] = []
            for _ in range(10):
                try:
                    await client.generate(PROMPT, steps=200, timeout_s=390)  # by the estimate, it takes 500 s
                    outcomes.append("done")
                except Krea2Error as error:
                    outcomes.append(error.code)
            assert outcomes == ["queue_full"] * 9 + ["done"]  # the fake rank is quicker than it says

    run(test())


def test_a_request_that_starts_over_is_not_refused_then(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder, replace_ranks=True) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            await teach(client)
            fakes.ranks[0].hold = True
            events = client.stream(PROMPT, steps=60, priority=-1, timeout_s=60)
            assert isinstance(await anext(events), Accepted)
            calls = await fill(fakes, client, 3, steps=100)
            fakes.ranks[0].fail("rank_failed", "planted")
            await fakes.has_generation(1)
            async for event in events:
                if isinstance(event, Accepted) and event.attempt == 2:
                    assert event.estimated_s is not None
                    assert event.estimated_s > 2 * 60
                    break
            for call in calls:
                call.cancel()

    run(test())
