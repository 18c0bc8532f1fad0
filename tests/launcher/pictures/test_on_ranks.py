"""Pictures on their way to ranks: pixels go to rank 0 alone, once, and again when the ranks are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.config.engine_config import EngineConfig
from engine.errors import QueueFullError
from engine.pictures.pixels import Pixels
from engine.step import Picture
from launcher.client.async_client import AsyncClient
from launcher.client.results import Result
from launcher.frontend import intake, warm_up
from launcher.messages.client_messages import Progress
from launcher.pictures.held import HeldPixels
from launcher.pictures.prepared import PreparedPicture
from tests.launcher.fake_ranks import DEADLINE_S, Fakes, fake_engine, run
from tests.launcher.ranks.losing_ranks import PROMPT, lose
from tests.virtual_ranks import make_job

SIZE = 64, 96
RGB = bytes(range(256)) * (SIZE[0] * SIZE[1] * 3 // 256)
MASK = bytes(range(SIZE[0] * SIZE[1] // 64))
PIXELS = Pixels(*SIZE, RGB, MASK)
Pictured = Callable[[Pixels | None], None]


@pytest.fixture
def pictured(monkeypatch: pytest.MonkeyPatch) -> Pictured:
    """Has requests that are checked from now on begin from these pixels, as though their files had been read; those
    of `steps` 20 run none."""
    check = intake.check

    def begin_from(pixels: Pixels | None) -> None:
        def checked(*arguments: object, **others: object) -> object:
            plain = check(*arguments, **others)  # type: ignore[arg-type]
            if pixels is None:
                return plain
            steps = 0 if plain.steps == 20 else plain.steps
            picture = PreparedPicture(SIZE, pixels)
            return replace(plain, width=SIZE[0], height=SIZE[1], steps=steps, picture=picture)

        monkeypatch.setattr(intake, "check", checked)

    return begin_from


async def kept(fakes: Fakes) -> int:
    """Pictures that the front-end keeps for its ranks."""
    return len(fakes.frontend._dispatcher._pixels.by_picture)


def test_pixels_go_to_rank_0_alone_with_the_step_that_starts_the_first_image(
    run_folder: Path, pictured: Pictured
) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            await client.generate(PROMPT, steps=1)
            pictured(PIXELS)
            result = await client.generate(PROMPT, steps=2, num_images=2)
            assert [image.size for image in result.images] == [SIZE] * 2
            first, other = fakes.ranks
            sent = [step for step in first.steps if step.encode]
            (step,) = sent
            (picture,) = step.encode
            assert picture == Picture(picture.picture_id, *SIZE, masked=True)
            assert [job.picture for job in step.start] == [picture] * 2
            assert step.forget == (picture.picture_id,)
            assert first.pixels[first.steps.index(step)] == {picture.picture_id: PIXELS}
            assert sum(map(len, first.pixels)) == 1
            assert sum(map(len, other.pixels)) == 0
            assert first.steps == other.steps
            assert await kept(fakes) == 0

    run(test())


@pytest.mark.parametrize("begun", [0, 1, 2], ids=["sent", "encoded", "with the decoder"])
def test_ranks_that_take_the_place_of_lost_ones_get_the_same_pixels(
    run_folder: Path, pictured: Pictured, begun: int
) -> None:
    """begun: steps that the lost ranks had done; there are two, and the image had not come."""

    async def test() -> None:
        async with fake_engine(run_folder, tp=2, replace_ranks=True) as fakes, AsyncClient(fakes.address) as client:
            for rank in fakes.ranks:
                rank.hold, rank.decodes = True, False
            pictured(PIXELS)
            call = asyncio.create_task(client.generate(PROMPT, steps=2, seed=7))
            for rank in fakes.ranks:
                await rank.has_steps(1)
                rank.release(begun)
            lost = fakes.ranks[0]
            await lost.has_steps(2)
            await lose(fakes)
            result: Result = await call
            assert (result.attempt, result.seeds) == (2, [7])
            again = fakes.ranks[0]
            assert (again.steps[0].start, again.steps[0].encode) == (lost.steps[0].start, lost.steps[0].encode)
            assert list(again.pixels[0].values()) == [PIXELS]
            assert await kept(fakes) == 0

    run(test())


def test_a_picture_whose_request_is_cancelled_is_forgotten_everywhere(run_folder: Path, pictured: Pictured) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            (rank,) = fakes.ranks
            rank.hold = True
            pictured(replace(PIXELS, mask=None))
            call = asyncio.create_task(client.generate(PROMPT, steps=100, num_images=2))
            await rank.has_steps(2)
            assert await kept(fakes) == 1
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            rank.resume()
            pictured(None)
            await client.generate(PROMPT, steps=1)
            assert await kept(fakes) == 0
            encoded = [picture.picture_id for step in rank.steps for picture in step.encode]
            assert [picture_id for step in rank.steps for picture_id in step.forget] == encoded

    run(test())


def test_a_picture_of_no_steps_is_encoded_and_decoded_without_progress_and_counted(
    run_folder: Path, pictured: Pictured
) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            (rank,) = fakes.ranks
            rank.encode_s = rank.denoise_s = rank.decode_s = 0.0
            pictured(PIXELS)
            events = [event async for event in client.stream(PROMPT, steps=20, num_images=2, explain=True)]
            assert not [event for event in events if isinstance(event, Progress)]
            result = events[-1]
            assert isinstance(result, Result)
            assert result.timings["encode_picture"] > 0
            assert result.timings["denoise"] == 0
            assert result.explanation is not None
            assert result.explanation.told.steps == 0
            assert result.explanation.parts["encode_picture"] > 0
            (step,) = [step for step in rank.steps if step.start]
            assert (step.denoise, len(step.decode), len(step.encode)) == ((), 2, 1)
            metrics = await client.metrics()
            assert b"krea2_encoded_pictures_total 1.0" in metrics
            assert b'krea2_step_seconds_count{part="encode_picture"} 1.0' in metrics
            assert b'krea2_stage_seconds_sum{stage="encode_picture"}' in metrics

    run(test())


def test_encoding_counts_where_another_rank_says_only_after_the_image_that_it_is_done(
    run_folder: Path, pictured: Pictured
) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            for rank in fakes.ranks:
                rank.encode_s = rank.denoise_s = rank.decode_s = 0.0
            fakes.ranks[1].hold = True
            pictured(PIXELS)
            call = asyncio.create_task(client.generate(PROMPT, steps=20))
            async with asyncio.timeout(DEADLINE_S):
                while not [each for each in fakes.frontend._requests._requests if each.timings.seconds["total"]]:
                    await asyncio.sleep(0.01)  # until its file is there
            assert not call.done()
            fakes.ranks[1].resume()
            assert (await call).timings["encode_picture"] > 0

    run(test())


def test_estimates_and_deadlines_count_what_pictures_took_to_encode(run_folder: Path, pictured: Pictured) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            (rank,) = fakes.ranks
            rank.picture_s = 100.0
            pictured(PIXELS)
            await client.generate(PROMPT, steps=1)
            with pytest.raises(QueueFullError, match=r"the request takes about 10[01] s by itself"):
                await client.generate(PROMPT, steps=1, num_images=2, timeout_s=20)
            pictured(None)
            await client.generate(PROMPT, steps=1, num_images=2, timeout_s=20)
            assert await kept(fakes) == 0

    run(test())


@pytest.mark.parametrize("image_input", [True, False])
def test_the_warm_up_has_a_picture_encoded_where_they_may_go_in(
    run_folder: Path, image_input: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_up, "LONGEST_S", DEADLINE_S)

    async def test() -> None:
        engine = EngineConfig(image_input=image_input)
        async with fake_engine(run_folder, engine=engine, warm_up=True) as fakes, AsyncClient(fakes.address) as client:
            async with asyncio.timeout(DEADLINE_S):
                while not (await client.status()).ready:
                    await asyncio.sleep(0.01)
            (rank,) = fakes.ranks
            encodings = [index for index, step in enumerate(rank.steps) if step.encode]
            assert len(encodings) == (warm_up._REPEATS if image_input else 0)
            for index in encodings:
                (picture,) = rank.steps[index].encode
                pixels = rank.pixels[index][picture.picture_id]
                assert len(pixels.rgb) == picture.pixels * 3
                assert rank.steps[index].forget == (picture.picture_id,)
            costs = fakes.frontend._dispatcher.scheduler.costs
            assert costs.encode_picture_s(128 * 128) == pytest.approx(rank.picture_s if image_input else rank.decode_s)

    run(test())


def test_pixels_are_kept_until_the_last_job_of_their_picture_has_ended() -> None:
    held, picture = HeldPixels(), Picture(5, *SIZE)
    jobs = [make_job(job_id, picture=picture) for job_id in range(2)]
    for job in jobs:
        held.add(job, PIXELS)
    held.add(make_job(2), None)
    for job_id in (1, 2, 3):
        held.end(job_id)
    assert held.by_picture == {5: PIXELS}
    held.end(0)
    assert not held.by_picture
