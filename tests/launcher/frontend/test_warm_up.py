"""The warm-up: it teaches the front-end what work costs, and nobody waits for it."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.chat_template import PREFIX_TOKENS
from engine.config.engine_config import EngineConfig
from engine.scheduling.cost import CostModel, Work
from engine.step import Job, Step, StepTimes
from launcher.client.async_client import AsyncClient
from launcher.frontend import warm_up as warmup
from launcher.frontend.warm_up import WarmUp
from launcher.messages.rank_messages import Ready
from launcher.requests.tokenizer import Prompt
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, Fakes, fake_engine, run
from tests.virtual_ranks import make_costs

PROMPT = "a red circle on a blue background"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no warm-up be cut off, as it is after a while, however busy the machine is."""
    monkeypatch.setattr(warmup, "LONGEST_S", DEADLINE_S)


async def until_ready(client: AsyncClient) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not (await client.status()).ready:
            await asyncio.sleep(0.01)


def live_jobs(steps: list[Step]) -> set[int]:
    """The jobs that a rank holds after these steps."""
    live: set[int] = set()
    for step in steps:
        live |= {job.job_id for job in step.start}
        assert live.issuperset(step.denoise)
        live -= {*step.decode, *step.release}
    return live


def test_the_server_is_ready_when_the_warm_up_is_over_and_knows_how_long_work_takes(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, warm_up=True) as fakes, AsyncClient(fakes.address) as client:
            await until_ready(client)
            steps = list(fakes.ranks[0].steps)
            assert not live_jobs(steps)
            assert [step.number for step in steps] == list(range(len(steps)))
            assert sum(len(step.decode) for step in steps) == len(warmup._PROMPTS)
            fakes.ranks[0].hold = True
            accepted = await anext(client.stream(PROMPT))
            assert accepted.estimated_s is not None  # type: ignore[union-attr]
            assert (await client.status()).done == 0

    run(test())


def test_a_request_that_comes_meanwhile_goes_first(run_folder: Path) -> None:
    class Slow(FakeRank):
        def _answer(self, step: Step) -> None:
            asyncio.get_running_loop().call_later(0.05, super()._answer, step)

    async def test() -> None:
        async with (
            fake_engine(run_folder, warm_up=True, make_rank=Slow) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            assert not (await client.status()).ready
            await client.generate(PROMPT, steps=2, seed=5)
            steps = fakes.ranks[0].steps
            (joined,) = (index for index, step in enumerate(steps) if any(job.seed == 5 for job in step.start))
            mine = steps[joined].start[0].job_id
            assert all(step.denoise == (mine,) for step in steps[joined : joined + 2])
            assert not (await client.status()).ready

    run(test())


def test_it_ends_when_its_time_is_up_and_leaves_no_job_behind(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "LONGEST_S", 0.0)

    async def test() -> None:
        async with fake_engine(run_folder, warm_up=True) as fakes, AsyncClient(fakes.address) as client:
            await until_ready(client)
            assert not live_jobs(fakes.ranks[0].steps)
            assert len(fakes.ranks[0].steps) <= 2

    run(test())


def test_it_ends_in_time_also_when_there_is_never_nothing_to_do(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "LONGEST_S", 0.5)

    class Slow(FakeRank):
        def _answer(self, step: Step) -> None:
            asyncio.get_running_loop().call_later(0.01, super()._answer, step)

    async def test() -> None:
        async with (
            fake_engine(run_folder, warm_up=True, make_rank=Slow) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            calls = [asyncio.create_task(client.generate(PROMPT, steps=200, num_images=10)) for _ in range(4)]
            await until_ready(client)
            assert not any(call.done() for call in calls)
            for call in calls:
                call.cancel()

    run(test())


def test_who_wants_to_know_hears_once_what_was_measured(run_folder: Path) -> None:
    heard: list[tuple[bool, Ready]] = []

    def hear(config: object, model: object, costs: CostModel, ready: Ready) -> None:
        heard.append((costs.known, ready))

    async def test() -> None:
        async with (
            fake_engine(run_folder, warm_up=True, replace_ranks=True, after_warm_up=hear) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            await until_ready(client)
            fakes.ranks[0].fail("rank_failed", "rank 0: lost")
            await fakes.has_generation(1)
            await until_ready(client)
            assert heard == [(True, Ready(rank=0, device="fake", memory={"weights": 1}, attention={}))]

    run(test())


def test_ranks_that_die_in_it_are_replaced_and_not_warmed_up_again(run_folder: Path) -> None:
    heard: list[object] = []

    async def test() -> None:
        async with (
            _held_engine(run_folder, heard, replace_ranks=True) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            await fakes.ranks[0].has_steps(1)
            fakes.ranks[0].fail("rank_failed", "rank 0: lost")
            await fakes.has_generation(1)
            await until_ready(client)
            fakes.ranks[0].hold = False
            assert (await client.generate(PROMPT, seed=4, steps=1)).seed == 4
            assert len(fakes.ranks[0].steps) == 1
            assert not heard

    run(test())


@pytest.mark.parametrize(
    ("engine", "guided"),
    [
        (EngineConfig(model="demo-raw", cfg_parallel=True), True),
        (EngineConfig(model="demo-raw", sp=2), False),
        (EngineConfig(model="demo-turbo", cfg_parallel=True), False),
    ],
)
def test_where_ranks_divide_guidance_its_images_are_guided(
    run_folder: Path, engine: EngineConfig, guided: bool
) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder, engine=engine, warm_up=True) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            await until_ready(client)
            jobs = [job for step in fakes.ranks[0].steps for job in step.start]
            assert jobs
            assert all((job.negative_ids is not None, job.guidance > 0) == (guided, guided) for job in jobs)

    run(test())


def test_what_it_learns_of_guided_images_is_what_their_two_segments_cost() -> None:
    model = CheckpointFiles.open(EngineConfig(model="demo-raw")).config
    costs, truth = CostModel(), make_costs()
    prompt = Prompt(ids=tuple(range(PREFIX_TOKENS + 9)), cut=False)
    warm_up = WarmUp(model, lambda _: prompt, itertools.count(), costs, guided=True)
    warm_up.begin(most_tokens=8192)
    jobs: dict[int, Job] = {}
    while (step := warm_up.next_step(lambda: Step(number=0))) is not None:
        jobs |= {job.job_id: job for job in step.start}
        segments = [
            len(ids) - PREFIX_TOKENS + model.image_tokens(job.width, job.height)
            for job in map(jobs.__getitem__, step.denoise)
            for ids in job.prompts
        ]
        assert len(segments) == 2 * len(step.denoise)
        assert sum(segments) <= 8192
        assert warm_up.step_done(step, StepTimes(denoise_s=truth.denoise_s(Work.of(segments)) or 0.0))
        for job_id in step.decode:
            warm_up.job_ended(job_id)
    assert warm_up.over
    image = model.image_tokens(model.default_width, model.default_height) + 9
    assert costs.denoise_s(Work.of([image, image])) == pytest.approx(truth.denoise_s(Work.of([image, image])), rel=0.02)


@pytest.mark.parametrize("end", ["its time is up", "a job failed"])
@pytest.mark.parametrize("known", [False, True])
def test_one_that_is_cut_off_tells_what_it_has_measured_unless_more_is_known(end: str, known: bool) -> None:
    model = CheckpointFiles.open(EngineConfig(model="demo-raw")).config
    costs, truth, now = CostModel(), make_costs(), 0.0
    if known:
        costs.fit([(Work.of([500]), 7.0)])
    before = costs.denoise_s(Work.of([500]))
    prompt = Prompt(ids=tuple(range(PREFIX_TOKENS + 9)), cut=False)
    warm_up = WarmUp(model, lambda _: prompt, itertools.count(), costs, guided=False, clock=lambda: now)
    warm_up.begin(most_tokens=8192)
    jobs: list[Job] = []
    for _ in range(2):  # of which the first is not measured
        step = warm_up.next_step(lambda: Step(number=0))
        assert step is not None
        jobs += step.start
        work = Work.of(9 + model.image_tokens(job.width, job.height) for job in jobs)
        assert warm_up.step_done(step, StepTimes(denoise_s=truth.denoise_s(work) or 0.0))
    if end == "a job failed":
        warm_up.job_ended(jobs[0].job_id)
    now = 2 * warmup.LONGEST_S
    step = warm_up.next_step(lambda: Step(number=0))
    assert step is not None
    assert (step.denoise, step.release) == ((), (jobs[0].job_id,))
    warm_up.step_done(step, StepTimes())
    assert warm_up.over
    assert warm_up.rough == (not known and end == "its time is up")
    if warm_up.rough:
        assert costs.denoise_s(work) == pytest.approx(truth.denoise_s(work))
    else:
        assert costs.denoise_s(Work.of([500])) == before


def test_what_was_only_guessed_is_not_kept(run_folder: Path) -> None:
    heard: list[object] = []

    async def test() -> None:
        async with (
            _held_engine(run_folder, heard) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            dispatcher = fakes.frontend._dispatcher
            await fakes.ranks[0].has_steps(1)
            fakes.ranks[0].release()
            await fakes.ranks[0].has_steps(2)
            dispatcher._warm_up._due = 0.0
            fakes.ranks[0].resume()
            await until_ready(client)
            assert dispatcher._warm_up.rough
            fakes.ranks[0].hold = True
            accepted = await anext(client.stream(PROMPT))
            assert accepted.estimated_s is not None  # type: ignore[union-attr]
            assert not heard

    run(test())


def _held_engine(
    run_folder: Path, heard: list[object], *, replace_ranks: bool = False
) -> AbstractAsyncContextManager[Fakes]:
    """One whose ranks hold all steps of the warm-up. heard: gets what that has measured."""
    return fake_engine(
        run_folder,
        warm_up=True,
        replace_ranks=replace_ranks,
        make_rank=_held,
        after_warm_up=lambda *measured: heard.append(measured),
    )


def _held(*arguments: object, **named: int) -> FakeRank:
    rank = FakeRank(*arguments, **named)  # type: ignore[arg-type]
    rank.hold = True
    return rank
