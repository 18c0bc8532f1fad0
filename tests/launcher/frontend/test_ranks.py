"""The front-end against ranks that fail, hang or never come."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.errors import (
    ArgumentError,
    CheckpointError,
    Krea2Error,
    LaunchError,
    RankError,
)
from launcher.client.async_client import AsyncClient
from launcher.messages.client_messages import Progress
from launcher.messages.rank_messages import lifeline_path
from launcher.ranks import rank_group
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, fake_engine, run

PROMPT = "a red circle on a blue background"


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (Krea2Error.code, "rank 0: RuntimeError: out of memory", RankError),
        (CheckpointError.code, "model.safetensors: is damaged", CheckpointError),
        (ArgumentError.code, "device cuda is not available", ArgumentError),
    ],
)
def test_a_rank_that_fails_ends_everything_with_its_own_error(
    run_folder: Path, code: str, message: str, kind: type[Krea2Error]
) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            calls = [asyncio.create_task(client.generate(PROMPT)) for _ in range(3)]
            await rank.has_steps(2)
            rank.fail(code, message)
            for call in calls:
                with pytest.raises(kind, match=message):
                    await call
            with pytest.raises(kind, match=message):
                await fakes.served
            with pytest.raises(kind, match=message):  # the front-end has said goodbye
                await client.generate(PROMPT)

    run(test())


@pytest.mark.parametrize("code", [Krea2Error.code, LaunchError.code])
def test_a_complaint_about_a_lost_connection_gives_way_to_its_cause(
    run_folder: Path, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_group, "_ROOT_CAUSE_S", DEADLINE_S)

    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            call = asyncio.create_task(client.generate(PROMPT))
            await fakes.ranks[0].has_steps(1)
            fakes.ranks[0].fail(code, "rank 0: RuntimeError: connection closed by peer")
            fakes.ranks[1].fail(CheckpointError.code, "the cause")
            with pytest.raises(CheckpointError, match="the cause"):
                await call

    run(test())


def test_a_request_has_begun_when_a_rank_hears_of_it(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ranks take for it would be more than has passed, if they had begun before."""
    send, started = rank_group.send_now, []

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:

            def look_and_send(*message: Any) -> bool:
                started.extend(request.started for request in fakes.frontend._requests._requests)
                return send(*message)

            monkeypatch.setattr(rank_group, "send_now", look_and_send)
            await client.generate(PROMPT, steps=3)
            assert started == [True] * 3

    run(test())


def test_a_rank_that_does_not_finish_a_step_is_lost(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2, step_timeout_s=2.0) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[1].hold = True
            with pytest.raises(RankError, match=r"rank 1 did not finish step 0 within 2 s"):
                await client.generate(PROMPT)

    run(test())


def test_an_image_that_is_never_decoded_makes_the_front_end_ask_and_then_give_up(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.frontend.frontend._CLOCK_S", 0.2)

    async def test() -> None:
        async with fake_engine(run_folder, step_timeout_s=2.0) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.decodes = False
            call = asyncio.create_task(client.generate(PROMPT, steps=1))
            steps = await rank.has_steps(2)  # at which a real rank whose decoder failed says so
            assert (steps[1].denoise, steps[1].number) == ((), 1)
            with pytest.raises(RankError, match="did not decode an image within 2 s"):
                await call

    run(test())


def test_a_rank_that_has_just_begun_to_decode_is_not_asked(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.frontend.frontend._CLOCK_S", DEADLINE_S)

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].decodes = False
            events = client.stream(PROMPT, steps=1)
            while not isinstance(await anext(events), Progress):
                pass
            dispatcher, asked = fakes.frontend._dispatcher, []
            for _ in range(2):
                dispatcher.check_decoder()
                asked.append(dispatcher.supervisor.group.outstanding.steps)
            assert asked == [0, 1]
            await events.aclose()  # type: ignore[attr-defined]

    run(test())


def test_ranks_that_never_come_are_a_launch_error(run_folder: Path) -> None:
    async def test() -> None:
        def silent(context: Any, folder: Path, rank: int, generation: int) -> FakeRank:
            return FakeRank(context, folder, rank, answer=rank == 0)

        with pytest.raises(LaunchError, match=r"rank 1 was not ready within 2 s"):
            async with fake_engine(run_folder, tp=2, start_timeout_s=2.0, make_rank=silent):
                pass

    run(test())


def test_what_does_not_fit_into_a_rank_s_memory_is_refused_and_steps_are_packed_to_fit(run_folder: Path) -> None:
    async def test() -> None:
        def small(context: Any, folder: Path, rank: int, generation: int) -> FakeRank:
            return FakeRank(context, folder, rank, memory={"weights": 1, "free": 15_500_000 - 1000 * rank})

        async with (
            fake_engine(run_folder, tp=2, make_rank=small) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            with pytest.raises(
                ArgumentError, match=r"1024 × 512 needs about \d+\.\d\d MB on rank 0, which has 15\.50 MB free"
            ):
                await client.generate(PROMPT, width=1024, height=512)
            result = await client.generate(10 * PROMPT, guidance=1.0, num_images=10, steps=2)
            assert len(result.files) == 10
            sizes = [len(step.denoise) for step in fakes.ranks[0].steps]
            assert 1 < max(sizes) < 10

    run(test())


def test_a_rank_that_cannot_be_reached_because_it_died_is_said_to_have_died(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_group, "_ROOT_CAUSE_S", DEADLINE_S)

    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            _, lifeline = await asyncio.open_unix_connection(lifeline_path(str(run_folder)))
            lifeline.write(bytes([1]))
            await lifeline.drain()
            fakes.ranks[1]._task.cancel()
            fakes.ranks[1]._socket.close(linger=0)
            await client.ping()  # by then the front-end's socket knows, unless the machine is busy
            call = asyncio.create_task(client.generate(PROMPT))
            await fakes.ranks[0].has_steps(1)  # the same step has been sent to rank 1, in vain
            lifeline.close()
            with pytest.raises(RankError, match="rank 1 died"):
                await call
            with pytest.raises(RankError, match="rank 1 died"):
                await fakes.served

    run(test())
