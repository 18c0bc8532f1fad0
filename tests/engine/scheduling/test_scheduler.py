"""What a scheduler puts into each step: jobs, prompts, decoding and adapters."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduling.outlook import Estimate
from engine.scheduling.scheduler import Scheduler
from engine.step import Adapter, Job, Picture, Step
from tests.engine.scheduling.steps import add, next_step, nothing_to_do
from tests.virtual_ranks import follow_pictures, make_costs, make_job, prompt_tokens


def test_a_job_starts_once_steps_as_often_as_it_asks_and_is_decoded_with_its_last_step() -> None:
    scheduler = Scheduler(token_budget=100)
    add(scheduler, make_job(7, steps=3), tokens=10)
    steps = [next_step(scheduler) for _ in range(3)]
    assert [step.start for step in steps] == [(make_job(7, steps=3),), (), ()]
    assert [step.denoise for step in steps] == [(7,), (7,), (7,)]
    assert [step.decode for step in steps] == [(), (), (7,)]
    assert nothing_to_do(scheduler)


def test_jobs_are_packed_up_to_the_budget_and_a_job_above_it_runs_by_itself() -> None:
    scheduler = Scheduler(token_budget=100, max_decoding=9)
    for job_id, tokens in ((0, 20), (1, 30), (2, 60), (3, 500)):
        add(scheduler, make_job(job_id, steps=1), tokens=tokens)
    assert [next_step(scheduler).denoise for _ in range(3)] == [(0, 1), (2,), (3,)]


def test_what_does_not_fit_is_passed_over_for_what_does() -> None:
    scheduler = Scheduler(token_budget=100)
    for job_id, tokens, priority in ((0, 60, 2), (1, 50, 1), (2, 40, 0)):
        add(scheduler, make_job(job_id, steps=5), tokens=tokens, priority=priority)
    assert next_step(scheduler).denoise == (0, 2)


def test_both_segments_of_a_guided_job_count() -> None:
    scheduler = Scheduler(token_budget=100)
    for job_id in range(2):
        scheduler.add(make_job(job_id), segments=(30, 30), request=job_id, now=0.0)
    assert next_step(scheduler).denoise == (0,)


def test_the_budget_may_change_between_steps() -> None:
    scheduler = Scheduler(token_budget=1)
    for job_id in range(2):
        add(scheduler, make_job(job_id))
    assert next_step(scheduler).denoise == (0,)
    scheduler.token_budget = 2
    assert next_step(scheduler).denoise == (0, 1)


def test_priority_goes_first_then_least_work_left_then_arrival() -> None:
    scheduler = Scheduler(token_budget=1, max_decoding=9)
    for job_id, priority, steps in ((0, 0, 1), (1, 5, 2), (2, 5, 1), (3, 5, 1), (4, -1, 1)):
        add(scheduler, make_job(job_id, steps=steps), priority=priority)
    assert [next_step(scheduler).denoise for _ in range(6)] == [(2,), (3,), (1,), (1,), (0,), (4,)]


def test_a_job_in_flight_is_passed_over_for_a_shorter_one_and_goes_on_later() -> None:
    scheduler = Scheduler(token_budget=1)
    add(scheduler, make_job(0, steps=4))
    next_step(scheduler)
    add(scheduler, make_job(1, steps=1))
    assert [next_step(scheduler).denoise for _ in range(4)] == [(1,), (0,), (0,), (0,)]


def test_prompts_encoded_in_a_step_are_bounded_and_shared_ones_count_once() -> None:
    scheduler = Scheduler(token_budget=100, prompt_budget=10)
    shared, other, long = tuple(range(6)), tuple(range(10, 16)), tuple(range(20, 50))
    for job_id, prompt in enumerate((shared, shared, other, long)):
        add(scheduler, make_job(job_id, steps=9, prompt=prompt))
    assert [job.job_id for job in next_step(scheduler).start] == [0, 1]
    assert [job.job_id for job in next_step(scheduler).start] == [2]
    step = next_step(scheduler)
    assert [job.job_id for job in step.start] == [3]
    assert step.denoise == (0, 1, 2, 3)


def test_jobs_in_flight_are_bounded_until_their_images_come() -> None:
    scheduler = Scheduler(token_budget=100, max_begun=2)
    for job_id in range(3):
        add(scheduler, make_job(job_id, steps=1))
    assert next_step(scheduler).denoise == (0, 1)
    assert nothing_to_do(scheduler)
    scheduler.decoded(0, 0.0)
    assert next_step(scheduler).denoise == (2,)


def test_images_wait_for_the_decoder_in_the_order_of_the_policy() -> None:
    scheduler = Scheduler(token_budget=100)
    for job_id, priority in ((0, 0), (1, 0), (2, 1), (3, 2)):
        add(scheduler, make_job(job_id, steps=1), priority=priority)
    assert next_step(scheduler).decode == (3, 2)
    assert nothing_to_do(scheduler)
    scheduler.decoded(2, 0.0)
    assert next_step(scheduler) == Step(number=1, decode=(0,))
    scheduler.decoded(3, 0.0)
    scheduler.decoded(0, 0.0)
    assert next_step(scheduler) == Step(number=2, decode=(1,))


def test_position_counts_jobs_of_others_that_begin_before() -> None:
    scheduler = Scheduler(token_budget=1)
    for job_id, request, priority in ((0, 5, 0), (1, 5, 0), (2, 6, 0), (3, 7, 1), (4, 5, 0)):
        add(scheduler, make_job(job_id), request=request, priority=priority)
    assert [scheduler.estimate(request, 0.0) for request in (5, 6, 7, 8)] == [
        Estimate(1, None),
        Estimate(3, None),
        Estimate(0, None),
        None,
    ]
    assert scheduler.backlog_s(0.0) is None
    assert next_step(scheduler).denoise == (3,)
    assert scheduler.estimate(7, 0.0) == Estimate(0, None)
    assert scheduler.estimate(6, 0.0) == Estimate(2, None)


def test_seconds_count_down_from_what_all_before_and_the_request_itself_take() -> None:
    costs = make_costs(fixed=1.0, per_token=0.0, per_pair=0.0, encode=0.0625, decode=2 / 64**2)
    scheduler = Scheduler(token_budget=100, costs=costs)
    for job_id, steps, request in ((0, 2, 0), (1, 3, 0), (2, 4, 1)):
        add(scheduler, make_job(job_id, steps=steps), tokens=100, request=request)
    # two prompt tokens, once, then steps of a second each; decoding takes 2 s beside the steps
    assert scheduler.estimate(0, 0.0) == Estimate(0, pytest.approx(0.125 + 5 + 2))
    assert scheduler.estimate(1, 0.0) == Estimate(2, pytest.approx(0.125 + 9 + 2))
    assert scheduler.backlog_s(0.0) == pytest.approx(11.125)
    assert scheduler.next_step(0.0, idle=True) is not None
    assert scheduler.estimate(1, 0.5) == Estimate(1, pytest.approx(10.625))


def test_where_images_are_decoded_in_turn_with_steps_seconds_count_both() -> None:
    costs = make_costs(fixed=1.0, per_token=0.0, per_pair=0.0, encode=0.0, decode=2 / 64**2)
    scheduler = Scheduler(token_budget=100, costs=costs, decodes_in_turn=True)
    for job_id, steps in ((0, 2), (1, 3)):
        add(scheduler, make_job(job_id, steps=steps), tokens=100)
    assert scheduler.estimate(0, 0.0) == Estimate(0, pytest.approx(2 + 2))
    assert scheduler.estimate(1, 0.0) == Estimate(1, pytest.approx(5 + 4))
    steps = [scheduler.next_step(now, idle=not now) for now in (0.0, 0.5, 1.0, 2.0)]  # as ranks end them
    assert [step.decode for step in steps if step is not None] == [(), (0,), (), ()]
    assert scheduler.estimate(1, 2.0) == Estimate(0, pytest.approx(9 - 2))


def test_an_empty_step_takes_a_number_like_any_other() -> None:
    scheduler = Scheduler(token_budget=10)
    add(scheduler, make_job(0))
    numbers = [next_step(scheduler).number, scheduler.empty_step().number, next_step(scheduler).number]
    assert numbers == [0, 1, 2]
    assert replace(scheduler.empty_step(), number=0) == Step(number=0)


def test_our_own_mistakes_are_refused() -> None:
    scheduler = Scheduler(token_budget=1)
    add(scheduler, make_job(0))
    with pytest.raises(ValueError, match="queued already"):
        add(scheduler, make_job(0))
    for segments in ((), (1, 0)):
        with pytest.raises(ValueError, match="segments"):
            scheduler.add(make_job(1), segments=segments, request=1, now=0.0)
    with pytest.raises(ValueError, match="positive"):
        Scheduler(token_budget=0)


@settings(max_examples=300)
@given(st.data())
def test_whatever_comes_and_goes_ranks_can_follow_every_step(data: st.DataObject) -> None:
    budget, prompts, pixels, max_begun = 50, 8, 6, data.draw(st.integers(1, 6))
    scheduler = Scheduler(budget, prompt_budget=prompts, picture_budget=pixels, max_begun=max_begun)
    pictures = [None, *(Picture(picture_id, width=picture_id + 1, height=1) for picture_id in range(8))]
    held: set[int] = set()
    live: dict[int, int] = {}  # what a rank would hold: denoise steps left by job
    jobs: dict[int, tuple[Job, int]] = {}  # with their tokens
    cancelled: set[int] = set()
    decoding: list[int] = []
    decoded: set[int] = set()
    number = 0

    def follow(step: Step) -> None:
        nonlocal number
        assert step.number == number
        number += 1
        for started in step.start:
            assert started.job_id not in live
            live[started.job_id] = started.steps
        follow_pictures(step, held)
        unbegun = jobs.keys() - live.keys() - cancelled - decoded - set(decoding)
        waiting = {jobs[job_id][0].picture for job_id in unbegun}
        assert held <= {picture.picture_id for picture in waiting if picture is not None}
        assert len(step.encode) <= 1 or sum(picture.pixels for picture in step.encode) <= pixels
        assert len(step.start) <= 1 or prompt_tokens(step.start) <= prompts
        assert not {*step.denoise, *step.decode} & cancelled
        for job_id in step.denoise:
            assert live[job_id] > 0
            live[job_id] -= 1
        assert len(step.denoise) <= 1 or sum(jobs[job_id][1] for job_id in step.denoise) <= budget
        for job_id in step.decode:
            assert live.pop(job_id) == 0
            decoding.append(job_id)
        for job_id in step.release:
            del live[job_id]
        assert len(decoding) <= 2
        assert len(live) + len(decoding) <= max_begun

    def image_comes() -> None:
        job_id = decoding.pop(0)
        decoded.add(job_id)
        scheduler.decoded(job_id, 0.0)

    for _ in range(data.draw(st.integers(0, 60))):
        action = data.draw(st.sampled_from(["add", "cancel", "reset", "image", "step", "step", "step"]))
        if action == "add":
            prompt = tuple(range(data.draw(st.integers(1, 12))))
            steps, picture = data.draw(st.integers(0, 5)), data.draw(st.sampled_from(pictures))
            job = make_job(len(jobs), steps=steps, prompt=prompt, picture=picture)
            jobs[job.job_id] = job, data.draw(st.integers(1, 80))
            scheduler.add(
                job,
                segments=(jobs[job.job_id][1],),
                request=job.job_id // 2,
                priority=data.draw(st.integers(-1, 1)),
                now=0.0,
            )
        elif action == "cancel" and jobs:
            job_id = data.draw(st.integers(0, len(jobs) - 1))
            scheduler.cancel(job_id)
            if job_id not in decoded:
                cancelled.add(job_id)
        elif action == "reset":
            scheduler.reset(alone=data.draw(st.sets(st.integers(0, 5), max_size=1)))
            live.clear()
            held.clear()
            decoding.clear()
            number = 0
        elif action == "image" and decoding:
            image_comes()
        elif (step := scheduler.next_step(0.0, idle=data.draw(st.booleans()) and not decoding)) is not None:
            follow(step)
    while decoding or (step := scheduler.next_step(0.0, idle=True)) is not None:
        if decoding:
            image_comes()
        else:
            follow(step)
    assert not live
    assert not held
    assert decoded | cancelled == set(jobs)


def test_adapters_are_loaded_one_a_step_before_jobs_and_unloaded_beside_them() -> None:
    scheduler = Scheduler(token_budget=100)
    add(scheduler, make_job(0, steps=3))
    assert next_step(scheduler).denoise == (0,)
    adapters = [Adapter(number, f"{number}.safetensors") for number in range(2)]
    for adapter in adapters:
        scheduler.load(adapter)
    add(scheduler, make_job(1, steps=3))
    steps = [next_step(scheduler) for _ in range(3)]
    assert [step.load for step in steps] == [(adapters[0],), (adapters[1],), ()]
    assert [step.denoise for step in steps] == [(), (), (0, 1)]
    assert [step.number for step in steps] == [1, 2, 3]
    scheduler.cancel(1)
    scheduler.unload(1)
    step = next_step(scheduler)
    assert (step.denoise, step.release, step.unload) == ((0,), (1,), (1,))
    scheduler.unload(0)
    assert next_step(scheduler).unload == (0,)  # though there is nothing else to do
    scheduler.load(adapters[0])
    scheduler.unload(0)
    scheduler.decoded(0, 0.0)
    scheduler.reset()
    assert nothing_to_do(scheduler)
