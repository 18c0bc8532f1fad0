"""Where the time of a request went: all of it is in some stage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.step import StepTimes
from launcher.requests.timings import STAGES, Timings


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


_DELAYS = st.floats(0, 10)


@given(
    queue=_DELAYS,
    steps=st.lists(st.tuples(_DELAYS, _DELAYS, _DELAYS, _DELAYS), min_size=1, max_size=4),
    decode=st.tuples(_DELAYS, _DELAYS, _DELAYS),
    told=st.sampled_from(["in time", "after the image", "never"]),
    file_s=_DELAYS,
)
def test_the_stages_of_one_image_add_up_however_late_its_reports_come(
    queue: float,
    steps: list[tuple[float, float, float, float]],
    decode: tuple[float, float, float],
    told: str,
    file_s: float,
) -> None:
    timings = Timings(arrived=5.0)
    clock = began = heard = 5.0 + queue  # of the rank, and of the front-end, which hears in order, but late
    timings.begin(began)
    for index, (wait, encode_s, denoise_s, late) in enumerate(steps):
        encode_s = 0.0 if index else encode_s
        clock += wait + encode_s + denoise_s
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
    counted = steps if told != "never" else steps[:-1]
    assert timings.seconds["denoise"] == pytest.approx(sum(denoise_s for _, _, denoise_s, _ in counted))


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
    timings.decoded(1, 0.5, 0.25)
    timings.stepped([1], StepTimes(denoise_s=0.25), 0.26, encoded=False)
    assert timings.seconds["decode_queue"] == 0.0
    assert timings.seconds["denoise_queue"] == 0.0
    assert timings.seconds["denoise"] == 0.25
