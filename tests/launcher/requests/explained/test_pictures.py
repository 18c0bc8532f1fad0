"""The life of a request whose images begin from a picture."""

from __future__ import annotations

import pytest

from engine.planning.floor import encode_flops
from engine.step import Picture, Reach, StepTimes
from launcher.client.explanation import ResultExplanation
from tests.launcher.requests.explained.story import DEMO, TOKENS, Story, of, parts


def test_encoding_a_picture_comes_before_the_prompts_and_has_a_floor_on_the_rank_that_does_it() -> None:
    story = Story(ranks=2, steps=1, pictured=True)
    story.life.begin(11.0)
    reach = Reach("a GPU", "as its maker says", 1e12, 1e12, 1e12, 1e12, 1e12, 1, 1)
    times = StepTimes(0.5, 1.0, TOKENS, picture_s=0.75, encoded_pixels=128 * 128, reach=reach)
    own = story.plan.jobs[0].picture
    story.step(0, (13.25, times), (13.25, times), sent=11.0, starts=(0,), encode=(own, Picture(77, 64, 64)))
    story.life.decoded(0, 0.5, 13.75)
    story.life.written(0, 13.75, 13.75)
    told = story.explain()
    assert {name: told.parts[name] for name in ("encode_picture", "encode_text", "denoise")} == {
        "encode_picture": 0.75,
        "encode_text": 0.5,
        "denoise": 1.0,
    }
    (first,), (second,) = of(told, "encode_picture", 0), of(told, "encode_picture", 1)
    assert (first.begin_s, first.end_s, first.others, first.how) == (1.0, 1.75, 1, "128 × 128")
    assert (first.floor_s, second.floor_s) == (
        pytest.approx((encode_flops(DEMO.vae, 128, 128) + encode_flops(DEMO.vae, 64, 64)) / 2e12),
        first.floor_s,
    )
    assert "picture read " in str(ResultExplanation("r", told))
    assert "picture encoding" in str(ResultExplanation("r", told))
    assert "128 × 128" in str(ResultExplanation("r", told))


def test_a_picture_of_others_is_a_wait() -> None:
    story = Story(steps=2)
    story.life.begin(11.0)
    others = StepTimes(0.0, 1.0, picture_s=0.5, encoded_pixels=99)
    story.step(0, (12.5, others), sent=11.0, starts=(0,), encode=(Picture(77, 64, 64),))
    story.step(1, (14.0, others), sent=11.0, encode=(Picture(78, 64, 64),))
    story.life.decoded(0, 0.5, 14.5)
    story.life.written(0, 14.5, 14.5)
    told = story.explain()
    assert parts(told) == {"check": 0.5, "queue": 0.5, "denoise": 2.0, "denoise_queue": 1.0, "decode": 0.5}
    assert "picture read" not in str(ResultExplanation("r", told))
    assert "picture encoding" not in str(ResultExplanation("r", told))


@pytest.mark.parametrize("late", [False, True])
def test_a_picture_that_is_only_encoded_and_decoded_has_a_whole_life(late: bool) -> None:
    story = Story(steps=0, pictured=True)
    story.life.begin(11.0)
    times = StepTimes(0.0, 1.0, picture_s=0.5, encoded_pixels=128 * 128)

    def told_of_step() -> None:
        story.step(0, (12.5, times), sent=11.0, starts=(0,), others=1, encode=(story.plan.jobs[0].picture,))

    if not late:
        told_of_step()
    story.life.decoded(0, 0.5, 13.0)
    assert story.life.is_told is not late
    if late:
        told_of_step()
    assert story.life.is_told
    story.life.written(0, 13.0, 13.25)
    told = story.explain()
    assert parts(told) == {
        "read_picture": 0.25,
        "check": 0.25,
        "queue": 0.5,
        "encode_picture": 0.5,
        "denoise_queue": 1.0,  # while another's image is denoised
        "decode": 0.5,
        "file": 0.25,
    }


@pytest.mark.parametrize("pictured", [False, True])
def test_what_filters_take_has_rows_of_its_own(pictured: bool) -> None:
    story = Story(pictured=pictured, filtered=10.375)
    story.life.begin(11.0)
    times = StepTimes(0.5, 1.0, picture_s=0.0)
    story.step(0, (12.5, times), sent=11.0, starts=(0,))
    story.step(1, (13.5, StepTimes(0.0, 1.0)), sent=12.5)
    story.life.decoded(0, 0.5, 14.0)
    story.life.filtered(0, 14.0, 16.0)
    story.life.written(0, 16.0, 16.25)
    told = story.explain()
    before = {"read_picture": 0.25, "filter_prompt": 0.125} if pictured else {"filter_prompt": 0.375}
    assert {name: parts(told).get(name) for name in (*before, "check", "filter_image", "file")} == {
        **before,
        "check": 0.125,
        "filter_image": 2.0,
        "file": 0.25,
    }
    shown = str(ResultExplanation("r", told))
    assert "filters, of the prompt" in shown
    assert "filters, of images" in shown
