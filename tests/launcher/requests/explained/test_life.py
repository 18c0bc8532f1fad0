"""The life of a request, from what ranks report."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduling.cost import NO_WORK, Work
from engine.scheduling.step_work import DoneWork
from engine.step import Reach, StepTimes
from launcher.client.explanation import ResultExplanation
from tests.launcher.requests.explained.story import OTHER, TOKENS, Story, of, parts, when


def test_each_stage_of_two_ranks_is_where_its_report_says_and_the_rest_is_unattributed() -> None:
    story = Story(ranks=2)
    story.life.begin(11.0)
    first = (13.0, StepTimes(0.5, 1.0, TOKENS)), (13.25, StepTimes(0.5, 1.25, TOKENS))
    story.step(0, *first, sent=11.0, starts=(0,))
    assert story.life.is_told
    story.life.decoded(0, 1.0, 16.0)
    assert not story.life.is_told
    story.step(1, *[(14.5, StepTimes(0.0, 1.0))] * 2, sent=11.5, behind=True)
    assert story.life.is_told
    story.life.written(0, 16.0, 16.25)
    told = story.explain()
    assert told.total_s == 6.25
    assert parts(told) == {
        "check": 0.5,
        "queue": 0.5,
        "encode_text": 0.5,
        "denoise": 2.25,  # rank 0 waited for rank 1
        "decode_queue": 0.5,
        "decode": 1.0,
        "file": 0.25,
        "unattributed": 0.75,
    }
    assert when(of(told, "encode_text", 1)) == [(1.5, 2.0)]
    assert when(of(told, "denoise", 0)) == [(2.0, 3.0), (3.5, 4.5)]
    assert when(of(told, "denoise", 1)) == [(2.0, 3.25), (3.5, 4.5)]
    assert [stage.steps for stage in of(told, "denoise", 0)] == [(1,), (2,)]
    assert when(of(told, "decode", 0)) == [(5.0, 6.0)]
    assert (told.prompt_tokens, told.segments, told.image_tokens, told.ranks) == ((TOKENS,), (72,), 64, 2)


def test_a_step_that_is_heard_of_late_ended_when_the_next_or_the_decoding_began() -> None:
    story = Story()
    story.life.begin(11.0)
    story.step(0, (14.25, StepTimes(0.0, 1.0)), sent=11.0, starts=(0,))  # while the next was under way
    story.step(1, (16.5, StepTimes(0.0, 1.0)), sent=11.5)  # after the image
    story.life.decoded(0, 1.0, 15.5)
    story.life.written(0, 15.5, 17.0)
    assert when(of(story.explain(), "denoise", 0)) == [(2.5, 3.5), (3.5, 4.5)]


def test_steps_that_are_saved_have_the_least_time_of_the_blocks_that_ran() -> None:
    story, reach = Story(steps=3), Reach("gpu", "measured", 1e9, 1e9, 1e9, 1e9, 1e9, block_bytes=10**9)
    story.life.begin(11.0)
    times = StepTimes(0.0, 1.0)
    story.step(0, (13.0, replace(times, reach=reach)), sent=11.0, starts=(0,))
    story.step(1, (13.5, replace(times, denoise_s=0.4)), sent=13.0, did=DoneWork(Work(12, 12 * 72, 1 / 6), 1, 1, 5))
    story.step(2, (13.6, replace(times, denoise_s=0.1)), sent=13.5, did=DoneWork(NO_WORK, 0, 0, 6))
    story.life.decoded(0, 1.0, 15.0)
    story.life.written(0, 15.0, 15.0)
    told = story.explain()
    denoised = of(told, "denoise", 0)
    assert [stage.floor_s for stage in denoised] == [1.0, pytest.approx(1 / 6), 0.0]
    assert [stage.how for stage in denoised] == ["", "some blocks", "no blocks"]
    (row,) = (line for line in str(ResultExplanation("r", told)).splitlines() if line.startswith("denoising"))
    assert " 1.1667 " in row
    assert row.endswith("3 steps, 1 running a part of the blocks, 1 without running a block")


def test_a_step_that_is_told_of_late_ended_when_its_rank_says() -> None:
    story = Story()
    story.life.begin(11.0)
    story.step(0, (14.0, StepTimes(0.0, 1.0, late_s=0.5)), sent=11.0, starts=(0,), decode=(OTHER,))
    story.step(1, (15.0, StepTimes(0.0, 1.0)), sent=11.5)
    story.life.decoded(0, 0.5, 15.5)
    story.life.written(0, 15.5, 15.5)
    told = story.explain()
    assert when(of(told, "denoise", 0)) == [(2.5, 3.5), (4.0, 5.0)]
    assert when(of(told, "denoise_queue")) == [(3.5, 4.0)]


def test_time_behind_others_is_told_apart_from_time_that_nobody_accounts_for() -> None:
    story = Story(steps=5)
    story.life.begin(11.0)
    second = StepTimes(0.0, 1.0)
    story.step(3, (13.0, second), sent=11.0, starts=(0,), behind=True)  # than a step that was under way
    story.step(4, (15.0, second), sent=11.0, decode=(OTHER,))
    story.step(5, (17.0, second), sent=11.0)  # than the decoding of another's image
    story.step(7, (19.0, second), sent=11.0)  # than a step of others alone
    story.step(8, (21.0, replace(second, encode_s=0.5, encoded_tokens=9)), sent=11.0)  # than others' prompts
    story.life.decoded(0, 1.0, 22.0)
    story.life.written(0, 22.0, 22.0)
    told = story.explain()
    assert told.parts["denoise_queue"] == 4.0
    assert told.parts["unattributed"] == 1.0
    assert not of(told, "encode_text", 0)[0].tokens


def test_steps_and_prompts_that_are_shared_or_kept_say_so() -> None:
    story = Story(steps=1, num_images=2)
    story.life.begin(11.0)
    times = StepTimes(0.5, 1.0, graph=True)
    story.step(0, (13.0, times), sent=11.0, jobs=(0,), starts=(0,), others=3)
    story.step(1, (15.0, replace(times, one_by_one=True)), sent=11.0, jobs=(1,), starts=(1,))
    for job, came in ((0, 14.0), (1, 16.0)):
        story.life.decoded(job, 0.5, came)
        story.life.written(job, came, came)
    told = story.explain()
    first, second = of(told, "denoise", 0)
    assert (first.others, first.images, first.tokens, first.how) == (3, (0,), 4 * 72, "graph")
    assert (second.others, second.images, second.how) == (0, (1,), "one by one")
    assert [stage.how for stage in of(told, "encode_text", 0)] == ["kept from before"] * 2
    table = str(ResultExplanation("r", told))
    assert "2 steps, 1 shared with 3 other images, 1 as CUDA graphs" in table
    assert "nothing was encoded, 2 kept from before" not in table
    assert "nothing was encoded, kept from before" in table


def test_what_lost_ranks_did_is_there_beside_the_attempt_that_made_the_images() -> None:
    story = Story(steps=1, num_images=2)
    story.life.begin(11.0)
    second = StepTimes(0.0, 1.0)
    story.step(0, (12.0, second), sent=11.0, starts=(0,))
    story.life.decoded(0, 0.5, 13.0)
    story.life.written(0, 13.0, 13.5)
    story.life.start_over(15.0)
    assert story.life.is_told
    story.life.begin(17.0)
    story.step(0, (18.0, second), sent=17.0, jobs=(1,), starts=(1,))
    story.life.decoded(1, 0.5, 18.5)
    story.life.written(1, 18.5, 19.0)
    told = story.explain()
    assert [(stage.attempt, stage.images) for stage in of(told, "denoise", 0)] == [(1, (0,)), (2, (1,))]
    assert [(stage.attempt, stage.images) for stage in of(told, "decode", 0)] == [(1, (0,)), (2, (1,))]
    assert when(of(told, "queue")) == [(0.5, 1.0), (5.0, 7.0)]
    assert (told.parts["lost"], told.attempt) == (1.5, 2)
    assert "the ranks died once" in told.notes[0]
    assert "2 steps, attempts 1, 2" in str(ResultExplanation("r", told))


def test_floors_stand_beside_what_they_are_the_floors_of() -> None:
    story = Story(steps=1)
    story.life.begin(11.0)
    reach = Reach("cpu", "measured just now", 1e9, 1e9, 1e9, 1e9, 1e9)
    times = StepTimes(0.5, 1.0, TOKENS, reach=reach, reach_s=0.25)
    story.step(0, (13.0, times), sent=11.0, starts=(0,))
    story.life.decoded(0, 0.5, 14.0)
    story.life.written(0, 14.0, 14.0)
    told = story.explain()
    assert when(of(told, "reach", 0)) == [(1.25, 1.5)]
    assert all(stage.floor_s for stage in told.stages if stage.name in ("encode_text", "denoise", "decode"))
    assert not any(stage.floor_s for stage in told.stages if stage.name not in ("encode_text", "denoise", "decode"))
    assert told.floor_source == "cpu: 1 GFLOP/s, 1 GB/s, measured just now"
    floor = f"{of(told, 'denoise', 0)[0].floor_s:.4f}"
    assert floor in next(line for line in str(ResultExplanation("r", told)).splitlines() if "denoising" in line)


seconds = st.floats(0.0, 2.0)


@given(
    st.lists(st.tuples(seconds, seconds, seconds, seconds, st.booleans()), min_size=1, max_size=4),
    st.tuples(seconds, seconds, seconds, seconds),
)
def test_whatever_is_reported_the_parts_add_up_and_nothing_overlaps(
    steps: list[tuple[float, float, float, float, bool]], decode: tuple[float, float, float, float]
) -> None:
    """Also of ranks that say that they took longer than has passed."""
    story = Story(ranks=2, steps=len(steps))
    now = 10.5
    story.life.begin(now)
    for number, (encode_s, denoise_s, other_s, wait_s, skips) in enumerate(steps):
        sent, now = now, now + wait_s
        by_rank = [(now, StepTimes(encode_s, each_s, TOKENS)) for each_s in (denoise_s, other_s)]
        story.step(2 * number + skips, *by_rank, sent=sent, starts=() if number else (0,))
    decode_s, wait_s, file_s, _ = decode
    story.life.decoded(0, decode_s, now + wait_s)
    story.life.written(0, now + wait_s, now + wait_s + file_s)
    story.explain()


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_what_ranks_reach_no_floor_is_made_up(guidance: float) -> None:
    story = Story(steps=1, guidance=guidance, preview_every=1)
    story.life.begin(11.0)
    story.step(0, (13.0, StepTimes(0.5, 1.0, TOKENS)), sent=11.0, starts=(0,))
    story.life.decoded(0, 0.5, 14.0)
    story.life.written(0, 14.0, 14.0)
    told = story.explain()
    assert not any(stage.floor_s for stage in told.stages)
    assert told.floor_source == "no floor is known for this device"
    assert len(told.segments) == 1 + (guidance > 0)
    table = str(ResultExplanation("r", told))
    assert ("unconditional" in table) == (guidance > 0)
    assert "previews" in table
