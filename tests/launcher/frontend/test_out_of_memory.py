"""Too little memory on the only rank: the image that does not fit fails, and whoever else is there hears nothing."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import httpx
import pytest

from engine.errors import OutOfMemoryError
from engine.step import Step
from launcher.client.async_client import AsyncClient
from launcher.frontend.dispatcher import _MAX_DECODING
from launcher.messages.rank_messages import JobFailed
from launcher.requests.rank_memory import RankMemory
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, fake_engine, run
from tests.launcher.frontend.fake_clock import FakeClock
from tests.launcher.hollow_rank import HUNGRY_SEED
from tests.launcher.processes import PATIENCE_S, Marked, connect, wait_until

PROMPT = "a red circle on a blue background"
WHY = "a step needs about 9.0 GB, and 1.0 GB are free"


def fail(rank: FakeRank, job_id: int) -> None:
    rank.send(JobFailed(rank=0, job_id=job_id, code="out_of_memory", message=WHY))


def test_a_served_image_that_does_not_fit_fails_by_itself(marked: Marked) -> None:
    """Over RPC and HTTP, from processes like those of a server."""
    marked.use_hollow_ranks()
    process = marked.start_krea2("serve", "--device", "cpu", "--port", "0", stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    http, rpc = (process.stdout.readline().strip().partition(": ")[2] for _ in range(2))
    with connect(rpc) as client:
        with pytest.raises(OutOfMemoryError, match=WHY):
            client.generate(PROMPT, seed=HUNGRY_SEED, steps=1)
        with pytest.raises(OutOfMemoryError, match=WHY):  # of the images of a request one does not fit
            client.generate(PROMPT, seed=HUNGRY_SEED - 1, num_images=2, steps=5)
        assert client.generate(PROMPT, seed=3, steps=2).seed == 3
        wait_until(lambda: httpx.get(f"{http}/ready", timeout=PATIENCE_S).status_code == 200, "the HTTP server")
        body = {"prompt": PROMPT, "seed": HUNGRY_SEED, "steps": 1}
        answer = httpx.post(f"{http}/v1/images/generations", json=body, timeout=PATIENCE_S)
        assert answer.status_code == 500, answer.text
        assert answer.headers["X-Should-Retry"] == "false"
        error = answer.json()["error"]
        assert (error["code"], error["message"]) == ("out_of_memory", WHY)
        status = client.status()
        assert (status.restarts, status.waiting, status.running) == (0, 0, 0)


def test_a_job_fails_while_its_next_steps_are_under_way(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of which decodes it, so that nobody may wait for its image; a job beside it goes on."""
    clock = FakeClock(monkeypatch)

    async def test() -> None:
        async with fake_engine(run_folder, step_timeout_s=60.0) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold, rank.decodes = True, False
            hungry = asyncio.create_task(client.generate(PROMPT, seed=1, steps=2))
            steps = await rank.has_steps(2)
            other = asyncio.create_task(client.generate(PROMPT, seed=2, steps=4))
            job_id = steps[0].start[0].job_id
            assert steps[1].decode == (job_id,)
            fail(rank, job_id)
            with pytest.raises(OutOfMemoryError, match=WHY):
                await hungry
            rank.resume()
            rank.decodes = True
            assert (await other).seed == 2
            assert not any(job_id in (*step.denoise, *step.decode) for step in rank.steps[2:])
            await clock.forward(70.0)  # longer than a decoder may take
            assert (await client.status()).restarts == 0

    run(test())


def test_images_that_cannot_be_decoded_keep_no_place_in_the_decoder(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.frontend.frontend._CLOCK_S", DEADLINE_S)  # or a rank that decodes gets empty steps

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.decodes = False
            for count in range(1, _MAX_DECODING + 2):
                call = asyncio.create_task(client.generate(PROMPT, steps=1))
                steps = await rank.has_steps(count)
                fail(rank, *steps[-1].decode)
                with pytest.raises(OutOfMemoryError, match=WHY):
                    await call
            rank.decodes = True
            assert (await client.generate(PROMPT, seed=3, steps=1)).seed == 3

    run(test())


def test_a_job_that_was_cancelled_meanwhile_fails_for_nobody(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            cancelled = asyncio.create_task(client.generate(PROMPT, seed=1, steps=3))
            steps = await rank.has_steps(2)
            cancelled.cancel()
            async with asyncio.timeout(DEADLINE_S):
                while (await client.status()).running:
                    await asyncio.sleep(0.01)
            fail(rank, steps[0].start[0].job_id)
            fail(rank, 12345)
            rank.resume()
            assert (await client.generate(PROMPT, seed=3, steps=2)).seed == 3

    run(test())


def test_steps_are_smaller_after_one_that_was_too_large(
    run_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what they leave is not for images to hold between steps."""
    beside: list[int] = []  # tokens of a step
    monkeypatch.setattr(RankMemory, "state_room", lambda _, tokens: beside.append(tokens))

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = rank.one_by_one = True
            calls = [asyncio.create_task(client.generate(PROMPT, num_images=4, steps=5))]
            await rank.has_steps(2)
            rank.release()
            steps = await rank.has_steps(3)
            assert len(steps[1].denoise) == 4
            rank.one_by_one = False
            rank.resume()
            await asyncio.gather(*calls)
            assert {len(step.denoise) for step in rank.steps[3:] if step.denoise} <= {1, 2, 3}
            rank.one_by_one = True
            await client.generate(PROMPT, steps=1)  # one that was too large by itself says nothing of others
            assert b"krea2_out_of_memory_steps_total 2.0" in await client.metrics()

    run(test())
    lines = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "out of memory"]
    assert [line["images"] for line in lines] == [4, 1]
    assert {line["token_budget"] for line in lines} == {int(0.75 * lines[0]["step_tokens"])}
    assert len({*beside}) == 1


def test_steps_grow_again_once_there_is_memory(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in the way may have been for a short time only, as a large image in the decoder or another process."""
    monkeypatch.setattr("engine.scheduling.token_budget._CALM_STEPS", 3)

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.one_by_one = True
            await client.generate(PROMPT, num_images=2, steps=1)
            await client.generate(PROMPT, num_images=2, steps=1)
            rank.one_by_one = False
            await client.generate(PROMPT, num_images=4, steps=50)
            sizes = [len(step.denoise) for step in rank.steps if step.denoise]
            assert sizes[:2] == [2, 1]
            assert max(sizes) == 4

    run(test())


@pytest.mark.parametrize(("fails", "most"), [("", 4), ("a step", 4), ("decoding", None)])
def test_a_warm_up_that_is_too_large_ends_and_leaves_nothing_behind(
    run_folder: Path, fails: str, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.frontend.warm_up.LONGEST_S", DEADLINE_S)

    class Small(FakeRank):
        def _answer(self, step: Step) -> None:
            self.one_by_one = fails != "decoding" and len(step.denoise) > 2
            if fails == "a step" and self.one_by_one:
                fail(self, step.denoise[0])
            self.decodes = not (fails == "decoding" and step.decode and self.jobs_failed == 0)
            super()._answer(step)
            if not self.decodes:
                self.jobs_failed += 1
                fail(self, *step.decode)

        jobs_failed = 0

    async def test() -> None:
        async with (
            fake_engine(run_folder, warm_up=True, make_rank=Small) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            async with asyncio.timeout(DEADLINE_S):
                while not (await client.status()).ready:
                    await asyncio.sleep(0.01)
            live: set[int] = set()
            for step in fakes.ranks[0].steps:
                live |= {job.job_id for job in step.start}
                live -= {*step.decode, *step.release}
            assert not live
            assert most in (None, max(len(step.denoise) for step in fakes.ranks[0].steps))
            assert (await client.generate(PROMPT, seed=3, steps=2)).seed == 3

    run(test())
