"""Where the time of a request went: all of it is in some stage."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.step import StepTimes
from launcher.client.async_client import AsyncClient
from launcher.requests.timings import STAGES, Timings
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.frontend.fake_clock import FakeClock
from tests.launcher.http_servers import PROMPT


def in_stages(timings: Timings) -> dict[str, float]:
    return {stage: timings.seconds[stage] for stage in STAGES if timings.seconds[stage]}


def test_the_stages_of_one_image_add_up_whatever_it_waits_for() -> None:
    timings = Timings(arrived=10.0)
    timings.begin(11.0)
    # sent behind a step of others, passed over once, then done
    timings.stepped([7], StepTimes(encode_s=0.5, denoise_s=1.0), 14.5, encoded=True)
    timings.stepped([7], StepTimes(denoise_s=1.0), 19.5, encoded=False)
    timings.decoded(7, 2.0, 41.5)
    timings.written(41.5, 41.75)
    assert in_stages(timings) == {
        "queue": 1.0,
        "encode_text": 0.5,
        "denoise_queue": 6.0,
        "denoise": 2.0,
        "decode_queue": 20.0,
        "decode": 2.0,
        "file": 0.25,
    }
    assert timings.seconds["total"] == sum(in_stages(timings).values()) == 31.75


def test_what_filters_take_is_part_of_no_wait() -> None:
    timings = Timings(arrived=10.0, filter_prompt_s=0.5)
    timings.begin(11.0)
    timings.stepped([7], StepTimes(encode_s=0.5, denoise_s=1.0), 12.5, encoded=True)
    timings.decoded(7, 1.0, 13.5)
    timings.filtered(13.5, 15.5)
    timings.written(15.5, 15.75)
    assert in_stages(timings) == {
        "filter_prompt": 0.5,
        "queue": 0.5,
        "encode_text": 0.5,
        "denoise": 1.0,
        "decode": 1.0,
        "filter_image": 2.0,
        "file": 0.25,
    }
    assert timings.seconds["total"] == sum(in_stages(timings).values()) == 5.75


def test_a_picture_counts_where_it_is_encoded_for_the_request_and_is_a_wait_where_it_is_another_s() -> None:
    times = StepTimes(encode_s=0.5, picture_s=2.0, denoise_s=1.0)
    for pictured, stages in ((True, {"encode_picture": 2.0}), (False, {"denoise_queue": 2.0})):
        timings = Timings(arrived=10.0)
        timings.begin(10.0)
        timings.stepped([7], times, 13.5, encoded=True, pictured=pictured)
        timings.decoded(7, 1.0, 14.5)
        assert in_stages(timings) == {"encode_text": 0.5, "denoise": 1.0, "decode": 1.0} | stages


@pytest.mark.parametrize("told", ["in time", "after the image"])
def test_the_stages_of_a_picture_that_is_only_encoded_and_decoded_add_up(told: str) -> None:
    timings = Timings(arrived=10.0)
    timings.begin(11.0)
    reports = [
        lambda: timings.stepped(
            [7], StepTimes(picture_s=2.0, denoise_s=1.0), 14.0, encoded=True, pictured=True, denoised=False
        ),
        lambda: timings.decoded(7, 1.5, 15.5),
    ]
    for report in reports if told == "in time" else reports[::-1]:
        report()
    timings.written(15.5, 16.0)
    # another's image is denoised for a second in the same step
    assert in_stages(timings) == {"queue": 1.0, "encode_picture": 2.0, "denoise_queue": 1.0, "decode": 1.5, "file": 0.5}
    assert timings.seconds["total"] == sum(in_stages(timings).values())


_DELAYS = st.floats(0, 10)


@given(
    queue=_DELAYS,
    steps=st.lists(st.tuples(_DELAYS, _DELAYS, _DELAYS, _DELAYS, _DELAYS), min_size=1, max_size=4),
    is_alone=st.booleans(),
    decode=st.tuples(_DELAYS, _DELAYS, _DELAYS),
    told=st.sampled_from(["in time", "after the image", "never"]),
    file_s=_DELAYS,
)
def test_the_stages_of_one_image_add_up_however_late_its_reports_come(
    queue: float,
    steps: list[tuple[float, float, float, float, float]],
    is_alone: bool,
    decode: tuple[float, float, float],
    told: str,
    file_s: float,
) -> None:
    timings = Timings(arrived=5.0)
    clock = began = heard = 5.0 + queue  # of the rank, and of the front-end, which hears in order, but late
    timings.begin(began)
    for index, (wait, encode_s, denoise_s, late, other_s) in enumerate(steps):
        encode_s = 0.0 if index else encode_s
        clock += wait + encode_s + denoise_s
        if not is_alone:  # another rank took longer for this step, and less for another one
            encode_s, denoise_s = max(encode_s, 0.0 if index else other_s), max(denoise_s, other_s)
        heard = max(heard, clock + late)
        if told == "in time" or index < len(steps) - 1:  # another rank's last answer may come after the image
            timings.stepped([7], StepTimes(encode_s, denoise_s), heard, encoded=not index)
    wait, decode_s, late = decode
    heard = max(heard, clock + wait + decode_s + late)
    timings.decoded(7, decode_s, heard)
    if told == "after the image":  # and before its file is written
        timings.stepped([7], StepTimes(encode_s, denoise_s), heard + file_s / 2, encoded=len(steps) == 1)
    timings.written(heard, heard + file_s)
    assert timings.seconds["total"] == pytest.approx(sum(in_stages(timings).values()))
    if is_alone:
        counted = steps if told != "never" else steps[:-1]
        assert timings.seconds["denoise"] == pytest.approx(sum(denoise_s for _, _, denoise_s, _, _ in counted))


def test_of_ranks_that_are_slow_by_turns_no_more_is_counted_than_has_passed() -> None:
    timings = Timings(arrived=0.0)
    timings.begin(0.0)
    for now in (3.0, 4.0):  # one took 1 and 3 seconds, the other 3 and 1
        timings.stepped([1], StepTimes(denoise_s=3.0), now, encoded=False)
    timings.decoded(1, 0.5, 4.5)
    timings.written(4.5, 4.75)
    assert in_stages(timings) == {"denoise": 4.0, "decode": 0.5, "file": 0.25}
    assert timings.seconds["total"] == 4.75


def test_a_step_that_is_told_of_late_counts_also_where_another_image_was_decoded_meanwhile() -> None:
    timings = Timings(arrived=0.0)
    timings.begin(0.0)
    timings.stepped([1, 2], StepTimes(denoise_s=1.0), 1.0, encoded=False)
    timings.decoded(1, 1.0, 2.0)
    timings.decoded(2, 0.5, 2.5)
    timings.stepped([2], StepTimes(denoise_s=1.0), 3.0, encoded=False)
    assert in_stages(timings) == {"denoise": 2.0, "decode": 1.5}


def test_an_image_does_not_wait_while_another_of_its_request_is_decoded() -> None:
    timings = Timings(arrived=0.0)
    timings.begin(0.0)
    timings.stepped([1, 2], StepTimes(denoise_s=1.0), 1.0, encoded=False)
    timings.decoded(1, 2.0, 4.0)  # a second after its last step
    timings.decoded(2, 2.0, 6.5)  # half a second after the first
    assert in_stages(timings) == {"denoise": 1.0, "decode_queue": 1.5, "decode": 4.0}


def test_an_image_that_comes_before_its_last_step_is_told_has_not_waited() -> None:
    timings = Timings(arrived=0.0)
    timings.begin(0.0)
    timings.decoded(1, 0.5, 0.75)
    timings.stepped([1], StepTimes(denoise_s=0.25), 0.76, encoded=False)
    assert timings.seconds["decode_queue"] == 0.0
    assert timings.seconds["denoise_queue"] == 0.0
    assert timings.seconds["denoise"] == 0.25


def test_a_result_says_where_the_time_went(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            call = asyncio.create_task(client.generate(PROMPT, num_images=2, steps=3))
            await fakes.ranks[0].has_steps(1)
            await clock.forward(2.0)  # more than the rank says that it has taken
            fakes.ranks[0].resume()
            result = await call
            assert result.timings["denoise"] == pytest.approx(0.75)
            assert result.timings["encode_text"] == pytest.approx(0.5)
            assert result.timings["decode"] == pytest.approx(0.25)
            assert set(result.timings) == {*STAGES, "total"}

    run(test())
