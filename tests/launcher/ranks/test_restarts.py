"""Ranks that die: another group is started, and the requests that they had run again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.errors import Krea2Error, LaunchError, RankError, RequestKilledRanksError
from engine.step import Step
from launcher.client.async_client import AsyncClient
from launcher.client.results import Event, ImageFile, PreviewFile, Result
from launcher.messages.client_messages import Accepted, Progress
from launcher.ranks import outstanding
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, Fakes, fake_engine, run
from tests.launcher.ranks.losing_ranks import PROMPT, lose

POISON = 666  # the seed of a request that kills ranks


class DyingRank(FakeRank):
    """A rank that fails at every step which has the job of a poisonous request."""

    def _answer(self, step: Step) -> None:
        self._jobs |= {job.job_id: job for job in step.start}
        if any(self._jobs[job_id].seed == POISON for job_id in step.denoise if job_id in self._jobs):
            self.fail("internal_error", f"rank {self.rank}: out of cheese")
        else:
            super()._answer(step)


async def collect(client: AsyncClient, **parameters: int) -> list[Event]:
    return [event async for event in client.stream(PROMPT, **parameters)]  # type: ignore[arg-type]


def test_what_ranks_had_when_they_died_runs_again_from_its_first_step(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2, replace_ranks=True) as fakes, AsyncClient(fakes.address) as client:
            for rank in fakes.ranks:
                rank.hold = True
            call = asyncio.create_task(collect(client, seed=7, steps=3, num_images=2))
            for rank in fakes.ranks:
                await rank.has_steps(2)
                rank.release()
            await fakes.ranks[0].has_steps(3)
            await lose(fakes)
            events = await call
            steps = fakes.ranks[0].steps
            assert [step.number for step in steps[:3]] == [0, 1, 2]
            assert [job.seed for job in steps[0].start] == [7, 8]
            assert [(event.step, event.attempt) for event in events if isinstance(event, Progress)] == [
                (2, 1),
                (2, 2),
                (4, 2),
                (6, 2),
            ]
            assert [event.attempt for event in events if isinstance(event, Accepted)] == [1, 2]
            result = events[-1]
            assert isinstance(result, Result)
            assert (result.seeds, result.attempt) == ([7, 8], 2)
            assert (await client.status()).restarts == 1

    run(test())


def test_an_image_that_was_there_before_the_ranks_died_is_not_made_again(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, replace_ranks=True) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].decodes = False
            images: asyncio.Queue[Event] = asyncio.Queue()

            async def follow() -> None:
                async for event in client.stream(PROMPT, seed=7, steps=1, num_images=2):
                    if isinstance(event, ImageFile | Result):
                        images.put_nowait(event)

            call = asyncio.create_task(follow())
            (step,) = (await fakes.ranks[0].has_steps(1))[:1]
            fakes.ranks[0].send_image(step.start[0])
            first = await images.get()
            await lose(fakes)
            second, result = await images.get(), await images.get()
            assert isinstance(first, ImageFile)
            assert isinstance(second, ImageFile)
            assert isinstance(result, Result)
            assert (first.seed, first.attempt, second.seed, second.attempt) == (7, 1, 8, 2)
            assert [job.seed for step in fakes.ranks[0].steps for job in step.start] == [8]
            await call

    run(test())


def test_a_request_that_kills_ranks_fails_at_the_third_death_and_takes_nobody_with_it(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder, replace_ranks=True, make_rank=DyingRank) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            fakes.ranks[0].hold = True
            others = [asyncio.create_task(client.generate(PROMPT, seed=seed, steps=2)) for seed in range(5)]
            poison = asyncio.create_task(client.generate(PROMPT, seed=POISON))
            await fakes.ranks[0].has_steps(2)
            while (await client.status()).waiting:
                fakes.ranks[0].release()
            fakes.ranks[0].hold = False
            fakes.ranks[0].release(9)
            with pytest.raises(RequestKilledRanksError, match="rank 0: out of cheese"):
                await poison
            (failed,) = [record for record in caplog.records if record.getMessage() == "request failed"]
            assert vars(failed)["fields"]["attempt"] == 3
            assert [(await call).seed for call in others] == list(range(5))
            await fakes.has_generation(3)
            assert (await client.generate(PROMPT, seed=99)).attempt == 1

    run(test())


def test_a_request_that_was_in_flight_at_two_deaths_runs_alone(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, replace_ranks=True) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            calls = [asyncio.create_task(client.generate(PROMPT, seed=seed, steps=2)) for seed in range(3)]
            for _ in range(2):
                steps = await fakes.ranks[0].has_steps(1)
                while sum(len(step.start) for step in steps) < 3:
                    fakes.ranks[0].release()
                    await asyncio.sleep(0.01)
                    steps = fakes.ranks[0].steps
                fakes.start_ranks = hold_next(fakes, fakes.generation == 0)  # type: ignore[method-assign]
                await lose(fakes)
            results = await asyncio.gather(*calls)
            assert [result.attempt for result in results] == [3, 3, 3]
            assert all(len(step.denoise) <= 1 for step in fakes.ranks[0].steps)

    def hold_next(fakes: Fakes, hold: bool):  # type: ignore[no-untyped-def]
        def start(generation: int = 0) -> None:
            Fakes.start_ranks(fakes, generation)
            fakes.ranks[0].hold = hold

        return start

    run(test())


@pytest.mark.parametrize("code", ["rank_failed", "bad_lora"])  # a LoRA that is merged, and no request's
def test_a_server_whose_ranks_never_last_gives_up_for_a_while_with_their_error(run_folder: Path, code: str) -> None:
    class Doomed(FakeRank):
        doomed = False

        def _answer(self, step: Step) -> None:
            if self.doomed:
                self.fail(code, "rank 0: no such GPU")
            else:
                super()._answer(step)

    async def test() -> None:
        async with (
            fake_engine(run_folder, replace_ranks=True, make_rank=Doomed) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            Doomed.doomed = True
            calls = [asyncio.create_task(client.generate(PROMPT, seed=seed)) for seed in range(3)]
            for call in calls:  # each is in flight at every death, so each may be the reason
                with pytest.raises((RankError, RequestKilledRanksError), match="no such GPU"):
                    await call

    run(test())


def test_ranks_that_die_as_soon_as_they_are_up_end_in_refusals_until_they_last(run_folder: Path) -> None:
    class Mortal(FakeRank):
        dies = False

        def send(self, message, *frames) -> None:  # type: ignore[no-untyped-def]
            super().send(message, *frames)
            if self.dies and type(message).__name__ == "Ready":
                self.fail("rank_failed", "rank 0: no such GPU")

    async def refusal(client: AsyncClient, timeout_s: float = 0.1) -> Krea2Error | None:
        try:
            await client.generate(PROMPT, timeout_s=timeout_s)
        except Krea2Error as error:
            return error
        return None

    async def test() -> None:
        async with (
            fake_engine(run_folder, replace_ranks=True, make_rank=Mortal) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            Mortal.dies = True
            await lose(fakes)
            async with asyncio.timeout(DEADLINE_S):
                while not isinstance(error := await refusal(client), RankError):
                    await asyncio.sleep(0.05)
            assert "no such GPU" in error.message
            async with asyncio.timeout(DEADLINE_S):
                while (await client.status()).ready:  # for a moment, until the next die
                    await asyncio.sleep(0.01)
                Mortal.dies = False
                while await refusal(client, DEADLINE_S) is not None:
                    await asyncio.sleep(0.05)
            assert (await client.status()).ready
            assert (await client.generate(PROMPT, seed=3)).seed == 3

    run(test())


def test_a_rank_that_hangs_is_noticed_after_a_multiple_of_what_such_steps_take(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outstanding, "_HANG_FACTOR", 8)
    monkeypatch.setattr(outstanding, "_HANG_S", 0.1)

    async def test() -> None:
        async with fake_engine(run_folder, replace_ranks=True) as fakes, AsyncClient(fakes.address) as client:
            await client.generate(PROMPT, steps=3)  # whose steps are said to take 0.25 s
            fakes.ranks[0].hold = True
            began = asyncio.get_running_loop().time()
            call = asyncio.create_task(client.generate(PROMPT, seed=2, steps=1))
            await fakes.has_generation(1)
            assert asyncio.get_running_loop().time() - began > 1.9
            (lost,) = (record for record in caplog.records if record.getMessage() == "ranks lost")
            assert lost.fields["message"].endswith("within 2 s")  # type: ignore[attr-defined]
            result = await call
            assert (result.seed, result.attempt) == (2, 2)

    run(test())


def test_a_group_that_never_came_up_is_not_replaced(run_folder: Path) -> None:
    class Silent(FakeRank):
        def send(self, message, *frames) -> None:  # type: ignore[no-untyped-def]
            pass

    async def test() -> None:
        with pytest.raises(LaunchError, match="not ready within"):
            async with fake_engine(run_folder, replace_ranks=True, make_rank=Silent, start_timeout_s=0.3):
                pass

    run(test())


def test_previews_are_sent_as_often_as_asked(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold_after_preview = True  # or the end may come while previews are being encoded, which drops them
            previews = []
            async for event in client.stream(PROMPT, steps=6, preview_every=2, num_images=2, seed=1):
                if isinstance(event, PreviewFile):
                    previews.append(event)
                    if len(previews) % 2 == 0:
                        rank.resume()
            assert sorted((preview.index, preview.step) for preview in previews) == [(0, 2), (0, 4), (1, 2), (1, 4)]
            assert all(preview.file.startswith(b"\xff\xd8") for preview in previews)
            assert b"krea2_previews_total 4.0" in await client.metrics()

    run(test())
