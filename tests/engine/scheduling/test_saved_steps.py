"""Jobs whose steps are not all computed: their work, their memory, their turn, and when they are done."""

from __future__ import annotations

import random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduling.cost import NO_WORK, CostModel, Work
from engine.scheduling.job_work import work_of
from engine.scheduling.planned_jobs import StateRoom
from engine.scheduling.scheduler import Scheduler
from engine.step import Step
from engine.step_cache.settings import StepCache
from engine.step_cache.step_plan import WHOLE, StepKind, plan_of
from tests.engine.scheduling.arrivals import BUDGET, SIZES
from tests.engine.scheduling.steps import next_step
from tests.virtual_ranks import Arrival, VirtualRanks, make_costs, make_job

VELOCITY = StepCache("velocity", warmup_steps=2, max_consecutive=3, order=1, max_cached=200)
BLOCKS = StepCache("blocks", warmup_steps=3, max_consecutive=2, order=1, max_cached=200)


@st.composite
def caches(draw: st.DrawFn) -> StepCache | None:
    method = draw(st.sampled_from([None, "blocks", "velocity"]))
    return method and StepCache(
        method,
        warmup_steps=draw(st.integers(0, 6)),
        max_consecutive=draw(st.integers(0, 5)),
        order=draw(st.integers(0, 1)),
        max_cached=draw(st.sampled_from([0, 3, 200])),
    )


@st.composite
def arrivals(draw: st.DrawFn, job_id: int, most_steps: int = 30) -> Arrival:
    guided, tokens = draw(st.booleans()), draw(st.sampled_from(SIZES))
    begin = draw(st.sampled_from([0.0, 0.3]))
    job = make_job(
        job_id,
        steps=draw(st.integers(1, most_steps)),
        guided=guided,
        cache=draw(caches()),
        window=(begin, draw(st.sampled_from([0.5, 1.0]))),
    )
    at = draw(st.sampled_from([0.0, 0.0, 0.5]))
    return Arrival(at, job, (tokens, tokens // 2)[: 1 + guided], job_id, state_bytes=draw(st.sampled_from([0, 5, 20])))


# ---- their work


@given(arrivals(0), st.floats(0, 1))
def test_a_jobs_work_is_that_of_its_steps_one_by_one(arrival: Arrival, share: float) -> None:
    job, plan = arrival.job, plan_of(arrival.job)
    work = work_of(job, arrival.segments, CostModel())
    assert (work is None) == (plan is None)
    if work is None or plan is None:
        return
    work.share.value = share
    runs = {StepKind.COMPUTED: 1.0, StepKind.MAY_BE_CACHED: share}
    tokens, passes = [0.0], [0.0]  # of so many last steps
    for left, kinds in enumerate(reversed([*zip(*plan, strict=True)]), 1):
        halves = [*zip(arrival.segments, kinds, strict=True)]
        assert work.all_left(left) == work.all_left(left) == work.expected(left, 0)
        assert work.packed(left) == Work.of(length for length, kind in halves if kind in runs)
        tokens.append(tokens[-1] + sum(length * runs.get(kind, 0.0) for length, kind in halves))
        passes.append(passes[-1] + max(runs.get(kind, 0.0) for kind in kinds))
    for left in range(job.steps + 1):
        for until in {0, left // 2, max(0, left - 1)}:
            expected = work.expected(left, until)
            assert expected.tokens == pytest.approx(tokens[left] - tokens[until], abs=1)
            assert expected.passes == pytest.approx(passes[left] - passes[until])
    busy = [left for left in range(job.steps + 1) if left == 0 or work.packed(left) != NO_WORK]
    assert [*work.shape.next_busy] == busy
    assert [work.shape.left[left].busy for left in busy] == [*range(len(busy))]


def test_what_is_saved_is_assumed_to_be_halfway_and_then_learned() -> None:
    costs = CostModel(blocks=10)
    job = make_job(0, steps=10, cache=BLOCKS)  # 3 of warm-up, 6 that may be cached, of which every third is not
    work = work_of(job, (100,), costs)
    assert work is not None
    least = 1 - (4 * 9 / 10) / 6
    assert work.share.value == pytest.approx((1 + least) / 2)
    assert work.expected(10, 0).tokens == pytest.approx(100 * (4 + 6 * work.share.value), abs=1)
    again = work_of(make_job(1, steps=10, cache=BLOCKS), (200,), costs)
    remembered = work.all_left(10)
    for _ in range(3):
        work.share.learn(0.7)
    assert again is not None
    assert again.share.value == pytest.approx(0.7)
    for _ in range(20):
        work.share.learn(0.5)
    assert again.share.value == pytest.approx(0.5, abs=0.01)
    assert work.all_left(10) == work.expected(10, 0) != remembered


def test_settings_of_which_there_are_many_are_forgotten_those_used_longest_ago_first() -> None:
    costs = CostModel()
    first = costs.shares.of(BLOCKS, 10, 6)
    for steps in range(11, 266):
        costs.shares.of(BLOCKS, steps, 6)
    assert costs.shares.of(BLOCKS, 10, 6) is first
    for steps in range(300, 556):
        costs.shares.of(BLOCKS, steps, 6)
    assert costs.shares.of(BLOCKS, 10, 6) is not first


def test_a_step_that_runs_part_of_the_blocks_corrects_costs_by_that_part() -> None:
    costs = make_costs(fixed=0.1, per_token=1e-3, per_pair=0.0)
    half = Work(500, 500_000, 0.5)
    assert costs.relative(half) == pytest.approx(0.55)
    for _ in range(40):
        costs.correct(half, 1.1)  # all has become twice as slow
    assert costs.relative(Work.of([1000])) == pytest.approx(2.2, rel=0.1)
    costs.correct(NO_WORK, 1.0)
    assert costs.relative(Work.of([1000])) == pytest.approx(2.2, rel=0.1)
    assert costs.denoise_s(NO_WORK) == 0.0


# ---- their turn


def test_a_step_that_runs_no_block_goes_before_others_and_alone() -> None:
    scheduler = Scheduler(1000, costs=make_costs())
    jobs = {0: make_job(0, steps=6, cache=VELOCITY), 1: make_job(1, steps=9)}
    for job_id, tokens in ((0, 900), (1, 800)):
        scheduler.add(jobs[job_id], segments=(tokens,), request=job_id, now=0.0)
    denoised = [next_step(scheduler).denoise for _ in range(6 + 9)]
    # two of warm-up, three forecast, the last one; the other has no room beside those that are computed
    assert denoised == [(0,)] * 6 + [(1,)] * 9


def test_jobs_of_which_one_is_forecast_share_the_budget_of_those_that_are_computed() -> None:
    scheduler = Scheduler(1000, costs=make_costs())
    scheduler.add(make_job(0, steps=8, cache=VELOCITY), segments=(900,), request=0, now=0.0)
    scheduler.add(make_job(1, steps=8, cache=VELOCITY), segments=(100,), request=1, now=0.0)
    denoised = [{*next_step(scheduler).denoise} for _ in range(8)]
    assert denoised == [{0, 1}] * 8


def test_less_work_left_goes_first_by_what_is_computed() -> None:
    scheduler = Scheduler(1000, costs=make_costs())
    scheduler.add(make_job(0, steps=8), segments=(900,), request=0, now=0.0)
    scheduler.add(make_job(1, steps=12, cache=VELOCITY), segments=(900,), request=1, now=0.0)  # 5 are computed
    assert next_step(scheduler).denoise == (1,)


def test_a_half_outside_the_window_leaves_its_place_to_others() -> None:
    scheduler = Scheduler(1000, costs=make_costs())
    scheduler.add(make_job(0, steps=4, guided=True, window=(0.0, 0.5)), segments=(500, 500), request=0, now=0.0)
    scheduler.add(make_job(1, steps=9), segments=(500,), request=1, now=0.0)
    assert [next_step(scheduler).denoise for _ in range(4)] == [(0,), (0,), (0, 1), (0, 1)]


def test_jobs_begin_again_with_all_their_steps() -> None:
    scheduler = Scheduler(1000, costs=make_costs())
    scheduler.add(make_job(0, steps=6, cache=VELOCITY), segments=(900,), request=0, now=0.0)
    for _ in range(3):
        next_step(scheduler)
    scheduler.reset(alone=[0])
    steps = [next_step(scheduler, idle=True) for _ in range(6)]
    assert [step.number for step in steps] == [*range(6)]
    assert steps[-1].decode == (0,)


# ---- their memory


def test_jobs_begin_while_there_is_room_for_what_they_hold_and_one_always_does() -> None:
    scheduler = Scheduler(1000, costs=make_costs())
    scheduler.planned.room = StateRoom(bytes=50, token_bytes=0.02)  # a quarter of a step's tokens take 5

    def add(job_id: int, state_bytes: int, cache: StepCache | None = BLOCKS, priority: int = 0) -> None:
        job = make_job(job_id, steps=20, cache=cache)
        scheduler.add(job, segments=(100,), request=job_id, now=0.0, state_bytes=state_bytes, priority=priority)

    for job_id, state_bytes in enumerate((20, 20, 20, 5)):
        add(job_id, state_bytes)
    add(4, 1000, cache=None)  # which keeps nothing
    assert next_step(scheduler).denoise == (0, 1, 4)  # not 3 either, or 2 might wait for ever
    assert {*next_step(scheduler).denoise} == {0, 1, 4}
    scheduler.cancel(0)
    assert {*next_step(scheduler).denoise} == {1, 2, 3, 4}
    for job_id in range(1, 5):
        scheduler.cancel(job_id)
    assert next_step(scheduler).release == (1, 2, 3, 4)
    add(5, 61)
    add(6, 0, cache=None)
    assert next_step(scheduler).denoise == (5, 6)  # 11 bytes more than there is room for, and 1000 - 550 tokens
    add(7, 0, cache=None, priority=1)
    add(8, 0, cache=None, priority=1)
    add(9, 0, cache=None, priority=1)
    assert next_step(scheduler).denoise == (7, 8, 9, 5)


def test_little_state_makes_steps_smaller_instead_of_waiting_where_they_may_take_all_there_is() -> None:
    scheduler = Scheduler(1000, costs=make_costs())
    scheduler.planned.room = StateRoom(bytes=0, token_bytes=1.0)
    for job_id, job in enumerate(make_job(job_id, steps=20, cache=BLOCKS) for job_id in range(6)):
        scheduler.add(job, segments=(100,), request=job_id, now=0.0, state_bytes=60)
    assert next_step(scheduler).denoise == (0, 1, 2, 3)  # 240 of 1000 tokens are a quarter at most


@pytest.mark.parametrize("tokens", [500, 2000])
def test_a_job_for_which_state_leaves_no_room_waits_until_it_is_given_back(tokens: int) -> None:
    """Whether it is the state of one that holds more than there is room for, or the job is larger than steps are."""
    scheduler = Scheduler(1000, costs=make_costs())
    scheduler.planned.room = StateRoom(bytes=1100, token_bytes=1.0)
    held = {500: 1700, 2000: 200}[tokens]
    scheduler.add(make_job(0, steps=3, cache=BLOCKS), segments=(300,), request=0, now=0.0, state_bytes=held)
    assert next_step(scheduler).denoise == (0,)
    scheduler.add(make_job(1, steps=2), segments=(tokens,), request=1, now=0.0, priority=1)
    scheduler.add(make_job(2, steps=2, cache=BLOCKS), segments=(50,), request=2, now=0.0, state_bytes=1)
    scheduler.add(make_job(3, steps=2), segments=(50,), request=3, now=0.0)
    # nor does another begin that holds some, or it might wait for ever
    assert [{*next_step(scheduler).denoise} for _ in range(2)] == [{0, 3}] * 2
    assert next_step(scheduler).denoise[0] == 1


def test_jobs_that_leave_each_other_no_room_do_not_wait_for_each_other() -> None:
    scheduler = Scheduler(1000, costs=make_costs())
    scheduler.planned.room = StateRoom(bytes=1000, token_bytes=1.0)
    for job_id in range(2):
        job = make_job(job_id, steps=3, cache=BLOCKS)
        scheduler.add(job, segments=(1600,), request=job_id, now=0.0, state_bytes=500)
    assert [next_step(scheduler).denoise for _ in range(6)] == [(0,)] * 3 + [(1,)] * 3
    scheduler.planned.room = StateRoom(bytes=0, token_bytes=1.0)  # it has become less
    for job_id in range(2, 4):
        job = make_job(job_id, steps=3, cache=BLOCKS)
        scheduler.add(job, segments=(1600,), request=job_id, now=0.0, state_bytes=100)
        next_step(scheduler)
    assert sum(len(next_step(scheduler).denoise) for _ in range(4)) == 4


@settings(max_examples=60)
@given(st.data())
def test_whatever_comes_ranks_can_follow_it(data: st.DataObject) -> None:
    mix = [data.draw(arrivals(job_id)) for job_id in range(data.draw(st.integers(1, 8)))]
    costs, most = make_costs(), data.draw(st.sampled_from([1, 20, 1000]))
    scheduler = Scheduler(data.draw(st.sampled_from([1000, BUDGET])), costs=costs)
    scheduler.planned.room = StateRoom(most, token_bytes=1.0)
    held: dict[int, int] = {}
    of_job = {one.job.job_id: one.state_bytes * (plan_of(one.job) is not None) for one in mix}

    def follow(step: Step, _: float) -> None:
        for job in step.start:
            held[job.job_id] = of_job[job.job_id]
        beyond = sum(held.values()) - most
        assert beyond <= scheduler.token_budget / 4 or sum(map(bool, held.values())) == 1
        for job_id in step.decode:
            held.pop(job_id)

    VirtualRanks(scheduler, costs, follow).run(mix)


def test_estimates_of_saved_steps_are_near_the_truth() -> None:
    wrong_by: list[float] = []
    for seed in range(20):
        draw = random.Random(seed)
        costs = make_costs()
        scheduler = Scheduler(BUDGET, costs=costs)
        mix = []
        for job_id in range(draw.randint(1, 8)):
            guided, tokens = draw.random() < 0.5, draw.choice(SIZES)
            cache = draw.choice([None, VELOCITY, BLOCKS])
            window = draw.choice([WHOLE, (0.0, 0.5)])
            job = make_job(job_id, steps=draw.choice((8, 20, 40)), guided=guided, cache=cache, window=window)
            mix.append(Arrival(0.0, job, (tokens,) * (1 + guided), job_id))
            for one in mix:
                if (work := work_of(one.job, one.segments, costs)) is not None and cache is BLOCKS:
                    work.share.value = 0.5
        estimates: list[tuple[float, int, float]] = []

        def ask(
            _: Step,
            now: float,
            scheduler: Scheduler = scheduler,
            estimates: list[tuple[float, int, float]] = estimates,
            mix: list[Arrival] = mix,
        ) -> None:
            for one in mix if now > 0 else []:
                if (estimate := scheduler.estimate(one.request, now)) is not None:
                    assert estimate.seconds is not None
                    estimates.append((now, one.request, estimate.seconds))

        ranks = VirtualRanks(scheduler, costs, ask)
        ranks.run(mix)
        for now, request, seconds in estimates:
            truth = ranks.decoded_at[request] - now
            if truth > 2 * max(ranks.longest_step_s, ranks.longest_decode_s):
                wrong_by.append(max(seconds / truth, truth / seconds))
    print(f"{len(wrong_by)} estimates, wrong by {mean(wrong_by):.3f} on average and {max(wrong_by):.2f} at most")
    assert mean(wrong_by) < 1.05
    assert max(wrong_by) < 2
