from __future__ import annotations

from dataclasses import replace

import pytest

from engine.step import Job
from engine.step_cache.settings import METHODS, PRESETS, StepCache
from engine.step_cache.step_plan import StepKind, plan_of

LETTERS = {"c": StepKind.COMPUTED, "m": StepKind.MAY_BE_CACHED, "f": StepKind.FORECAST, "-": StepKind.LEFT_OUT}
GUIDED = Job(0, (1, 2), (3,), 64, 64, 12, 3.5, None, 0)
UNGUIDED = replace(GUIDED, negative_ids=None, guidance=0.0)
VELOCITY = StepCache("velocity", warmup_steps=2, max_consecutive=2, order=1, max_cached=200)
BLOCKS = replace(VELOCITY, method="blocks")


def written(job: Job) -> list[str]:
    plan = plan_of(job)
    assert plan is not None
    letters = {kind: letter for letter, kind in LETTERS.items()}
    return ["".join(letters[kind] for kind in half) for half in plan]


def test_a_job_that_asks_for_nothing_has_no_plan_and_neither_has_a_window_without_guidance() -> None:
    assert plan_of(GUIDED) is None
    assert plan_of(replace(UNGUIDED, guidance_window=(0.2, 0.5))) is None


@pytest.mark.parametrize(
    ("cache", "plan"),
    [
        (VELOCITY, "ccffcffcffcc"),
        (replace(VELOCITY, warmup_steps=5, max_consecutive=1), "cccccfcfcfcc"),
        (replace(VELOCITY, max_consecutive=100), "ccffffffffcc"),
        (replace(VELOCITY, max_consecutive=4), "ccffffcfffcc"),
        (replace(VELOCITY, max_cached=3), "ccffcfcccccc"),
        (replace(VELOCITY, warmup_steps=0), "cffcffcffcfc"),
        (replace(VELOCITY, warmup_steps=12), "c" * 12),
        (replace(VELOCITY, max_cached=0), "c" * 12),
        (replace(VELOCITY, max_consecutive=0), "c" * 12),
        (BLOCKS, "ccmmmmmmmmmc"),
        (replace(BLOCKS, warmup_steps=0), "cmmmmmmmmmmc"),
        (replace(BLOCKS, max_cached=0), "c" * 12),
    ],
)
def test_steps_after_the_warm_up_are_saved_but_for_the_last_and_none_in_a_row_before_it(
    cache: StepCache, plan: str
) -> None:
    assert written(replace(GUIDED, cache=cache)) == [plan, plan]
    assert written(replace(UNGUIDED, cache=cache)) == [plan]


@pytest.mark.parametrize(
    ("window", "plan"),
    [
        ((0.25, 1.0), "---ccccccccc"),
        ((0.0, 0.5), "cccccc------"),
        ((0.26, 0.51), "----ccc-----"),
        ((0.5, 0.5), "-" * 12),
    ],
)
def test_outside_the_window_the_negative_prompt_is_left_out(window: tuple[float, float], plan: str) -> None:
    assert written(replace(GUIDED, guidance_window=window)) == ["c" * 12, plan]


def test_the_window_is_of_the_whole_schedule_and_the_warm_up_of_what_is_run() -> None:
    late = replace(GUIDED, steps=6, skipped_steps=6, cache=VELOCITY, guidance_window=(0.0, 0.75))
    assert written(late) == ["ccffcc", "ccf---"]


@pytest.mark.parametrize(("cache", "plan"), [(VELOCITY, "---cffcffcfc"), (BLOCKS, "---cmmmmmmmc")])
def test_a_half_that_begins_late_is_computed_before_it_is_saved(cache: StepCache, plan: str) -> None:
    assert written(replace(GUIDED, cache=cache, guidance_window=(0.25, 1.0)))[1] == plan


def test_one_step_is_computed_and_none_has_an_empty_plan() -> None:
    assert written(replace(GUIDED, steps=1, cache=replace(VELOCITY, warmup_steps=0))) == ["c", "c"]
    assert plan_of(replace(GUIDED, steps=0, cache=VELOCITY)) == ()


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_save_steps_and_know_their_method(name: str) -> None:
    assert PRESETS[name].method in METHODS
    plan = written(replace(GUIDED, steps=40, cache=PRESETS[name]))
    assert all(half.count("c") < 40 and half[-1] == "c" for half in plan)
