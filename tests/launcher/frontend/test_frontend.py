"""The front-end against ranks that compute nothing: what becomes of a request."""

from __future__ import annotations

import asyncio
import io
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL

from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import (
    ArgumentError,
    CancelledError,
    NotFiniteError,
    QueueFullError,
    RequestTimeoutError,
)
from launcher.client.async_client import AsyncClient
from launcher.client.results import Result
from launcher.messages.client_messages import Accepted, StatusReply
from launcher.messages.limits import Limits
from launcher.messages.parameter_names import GUIDANCE_IS_OFF
from tests.launcher.fake_ranks import NOT_FINITE_SEED, fake_engine, run

PROMPT = "a red circle on a blue background"


def test_a_request_becomes_steps_for_every_rank_and_a_result_for_its_client(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            result = await client.generate(PROMPT, seed=5, num_images=2, steps=3)
            steps = fakes.ranks[0].steps
            assert steps == await fakes.ranks[1].has_steps(3)  # which may hear of the last after the image has come
            assert [step.number for step in steps] == [0, 1, 2]
            assert [job.seed for job in steps[0].start] == [5, 6]
            assert all(len(step.denoise) == 2 for step in steps)
            assert (result.seed, result.seeds) == (5, [5, 6])
            assert (result.width, result.height, result.format) == (128, 128, "png")
            assert [image.getpixel((0, 0))[0] for image in result.images] == [5, 6]  # type: ignore[index]
            assert result.warnings == ()

    run(test())


def test_an_image_of_latents_that_are_no_numbers_fails_its_request_and_no_other(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            others = [asyncio.create_task(client.generate(PROMPT, seed=seed, steps=2)) for seed in (1, 2)]
            with pytest.raises(NotFiniteError, match="the image with seed 666 came out as no numbers"):
                await client.generate(PROMPT, seed=NOT_FINITE_SEED, steps=2)
            assert [(await other).seed for other in others] == [1, 2]
            assert (await client.generate(PROMPT, seed=3, steps=1)).seed == 3

    run(test())


def test_two_steps_are_outstanding_and_never_more(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=5))
            for answered in range(4):
                await rank.has_steps(answered + 2)
                await client.status()  # the front-end has had time for more
                assert len(rank.steps) == answered + 2
                rank.release()
            rank.release(2)
            assert (await call).seeds

    run(test())


def test_a_new_request_joins_at_most_two_steps_after_it_arrived(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            first = asyncio.create_task(client.generate(PROMPT, steps=20))
            await rank.has_steps(2)
            second = asyncio.create_task(client.generate(PROMPT, steps=20, request_id="second"))
            while (await client.status()).waiting != 1:
                pass
            rank.release()
            steps = await rank.has_steps(3)
            assert len(steps[2].start) == 1
            assert len(steps[2].denoise) == 2
            for call in (first, second):
                call.cancel()

    run(test())


def test_a_cancel_is_answered_at_once_and_leaves_out_the_request_from_the_next_step(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=5, request_id="mine"))
            await rank.has_steps(2)
            await client.cancel("mine")
            with pytest.raises(CancelledError, match="cancelled"):
                await call
            rank.release()
            steps = await rank.has_steps(3)
            assert steps[2].denoise == ()
            assert steps[2].release == (steps[0].start[0].job_id,)
            rank.hold = False
            rank.release(2)
            assert (await client.generate(PROMPT, steps=1)).seeds
            await client.cancel("mine")
            await client.cancel("never heard of")

    run(test())


def test_the_result_of_a_job_that_was_cancelled_in_its_last_step_is_dropped(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=1, request_id="mine"))
            await rank.has_steps(1)
            await client.cancel("mine")
            with pytest.raises(CancelledError):
                await call
            rank.hold = False
            rank.release()
            assert (await client.generate(PROMPT, steps=1, seed=3)).seed == 3
            status = await client.status()
            assert (status.done, status.failed, status.running, status.waiting) == (1, 1, 0, 0)

    run(test())


def test_timeout_s_ends_a_request(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            with pytest.raises(RequestTimeoutError, match=r"timeout_s of 0\.1"):
                await client.generate(PROMPT, timeout_s=0.1)

    run(test())


def test_what_is_wrong_with_a_request_is_said_before_a_rank_hears_of_it(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            with pytest.raises(ArgumentError, match=r"^width must be between 64 and 4096, got 100000$") as error:
                await client.generate(PROMPT, width=100000)
            assert error.value.parameter == "width"
            with pytest.raises(ArgumentError, match=r"^steps must be a whole number, got 'many'$") as error:
                await client.generate(PROMPT, steps="many")  # type: ignore[arg-type]
            assert error.value.parameter == "steps"
            with pytest.raises(ArgumentError, match=r"^negative_prompt must be text or null, got a whole number$"):
                await client.generate(PROMPT, negative_prompt=3)  # type: ignore[arg-type]
            with pytest.raises(ArgumentError, match=r"^prompt must be one text .*, got 3$"):
                await client.generate(3)  # type: ignore[arg-type]
            with pytest.raises(ArgumentError, match="guidance must be between 0 and 20, got nan"):
                await client.generate(PROMPT, guidance=float("nan"))
            with pytest.raises(ArgumentError, match=r"^seed must be between -9223372036854775808 and "):
                await client.generate(PROMPT, seed=2**70)
            with pytest.raises(ArgumentError, match="a type that is not allowed"):
                await client.generate(PROMPT, width=2**70)
            with pytest.raises(ArgumentError, match="lone surrogates"):
                await client.generate("\ud800")
            with pytest.raises(ArgumentError, match="prompt must be at most 16384 bytes"):
                await client.generate("x" * 20_000)
            with pytest.raises(ArgumentError, match="a request must be at most"):
                await client.generate("x" * 1_000_000)
            with pytest.raises(TypeError, match="stepz"):
                await client.generate(PROMPT, stepz=3)  # type: ignore[call-arg]
            assert fakes.ranks[0].steps == []

    run(test())


def test_warnings_say_what_was_changed_and_what_cannot_be_drawn(run_folder: Path, demo: ModelConfig) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            parameters: dict[str, Any] = {"width": 100, "negative_prompt": "no " * 600, "guidance": 1.0}
            events = [event async for event in client.stream("fox " * 600, height=128, **parameters)]
            result = events[-1]
            assert isinstance(result, Result)
            assert isinstance(events[0], Accepted)
            assert events[0].warnings == result.warnings  # before any step
            assert (result.width, result.height) == (112, 128)
            assert PIL.open(io.BytesIO(result.files[0])).size == (112, 128)
            assert demo.prompt_domain is not None
            rounded, *others = result.warnings
            assert "rounded up to 112 × 128" in rounded
            assert others == [
                demo.prompt_domain.warning("fox"),
                demo.prompt_domain.negative_warning("no"),
                "guidance 1 may spoil the picture: Turbo has it built in; leave it out, or take Raw",
                "prompt was cut to 507 tokens",
                "negative_prompt was cut to 507 tokens",
            ]
            events = [event async for event in client.stream("fox", guidance_scale=1)]
            first, last = events[0], events[-1]
            assert isinstance(first, Accepted)
            assert isinstance(last, Result)
            assert first.warnings == last.warnings == (GUIDANCE_IS_OFF, demo.prompt_domain.warning("fox"))

    run(test())


def test_a_full_queue_refuses_at_once(run_folder: Path) -> None:
    async def test() -> None:
        limits = Limits(max_queue=2)
        async with fake_engine(run_folder, limits=limits) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            calls = [asyncio.create_task(client.generate(PROMPT, steps=2))]
            await rank.has_steps(2)
            calls += [asyncio.create_task(client.generate(PROMPT, steps=2)) for _ in range(2)]  # which wait
            while (await client.status()).waiting < 2:
                pass
            with pytest.raises(QueueFullError, match="full with 2 requests"):
                await client.generate(PROMPT)
            rank.hold = False
            rank.release(2)
            await asyncio.gather(*calls)
            assert (await client.generate(PROMPT)).seeds

    run(test())


def test_status_and_the_log_say_what_the_engine_is_doing(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="krea2")

    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            status = await client.status()
            assert isinstance(status, StatusReply)
            assert (status.model, status.tp, status.device, status.ready) == ("demo", 2, "fake", True)
            assert not status.given_up
            assert status.rank_memory == ({"weights": 1}, {"weights": 1})
            (starting,) = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "starting"]
            assert (starting["model"], starting["tp"]) == ("demo", 2)
            assert await client.ping() >= 0

    run(test())


def test_a_later_request_is_told_its_place_and_the_time_until_it_is_done(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            first = await anext(client.stream(PROMPT))
            assert isinstance(first, Accepted)
            assert (first.position, first.estimated_s) == (0, None)
            await client.generate(PROMPT, steps=3)
            fakes.ranks[0].hold = True
            calls = [asyncio.create_task(client.generate(PROMPT, num_images=4)) for _ in range(2)]
            while (await client.status()).running + (await client.status()).waiting < 2:
                pass
            later = await anext(client.stream(PROMPT, num_images=5))
            assert isinstance(later, Accepted)
            assert later.position == 4  # the images of the second call; those of the first have begun
            assert later.estimated_s is not None
            assert later.estimated_s > 0
            for call in calls:
                call.cancel()

    run(test())


def test_where_all_ranks_decode_together_a_request_is_told_that_it_waits_for_the_decoding_of_others(
    run_folder: Path,
) -> None:
    async def seconds_behind_large_images(number: int, engine: EngineConfig) -> float:
        folder = run_folder / str(number)
        folder.mkdir()
        async with fake_engine(folder, engine=engine) as fakes, AsyncClient(fakes.address) as client:
            # The third step is sent when all ranks have done the first. Decoded in 0.125 s, so one of 512² takes 2 s.
            await client.generate(PROMPT, steps=4)
            for rank in fakes.ranks:
                rank.hold = True
            large = asyncio.create_task(client.generate(PROMPT, steps=1, num_images=8, width=512, height=512))
            while (await client.status()).running + (await client.status()).waiting < 1:
                pass
            accepted = await anext(client.stream(PROMPT, steps=150))  # which takes longer than all the decoding
            assert isinstance(accepted, Accepted)
            assert accepted.estimated_s is not None
            large.cancel()
            return accepted.estimated_s

    async def test() -> None:
        engines = EngineConfig(), EngineConfig(tp=2), EngineConfig(tp=2, vae_memory=10**9)
        alone, together, tiled = [await seconds_behind_large_images(*each) for each in enumerate(engines)]
        assert together > alone + 10
        assert tiled < alone + 5

    run(test())
