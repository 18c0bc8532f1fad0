"""Which schedule images get: the request's own, that which its LoRAs were made for, or the checkpoint's."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.lora.schedule import LoraSchedule
from engine.sigmas import are_sigmas, without_last_zero
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.message_parts import LoraChoice
from launcher.requests.check import CheckedRequest, check
from launcher.requests.plan import make_plan
from launcher.requests.schedule.noise_levels import LoraSchedules
from launcher.requests.tokenizer import Prompt

TURBO = ModelConfig.from_folder(DEMO_CHECKPOINT)
RAW = replace(TURBO, is_distilled=False)
FOUR = LoraSchedule(4, (1.0, 0.75, 0.5, 0.25), mu=0.0, guidance=0.0)
SAID = "4 steps, sigmas 1, 0.75, 0.5, 0.25, mu 0"
STEPS, GUIDANCE = "steps, sigmas or mu", "guidance"


def checked(
    model: ModelConfig = TURBO,
    named: dict[str, LoraSchedule] | None = None,
    merged: dict[str, LoraSchedule] | None = None,
    limits: Limits | None = None,
    **parameters: Any,
) -> CheckedRequest:
    loaded = dict.fromkeys(named or {}, 1.0) | {"plain": 1.0, "off": 0.0}
    parameters["loras"] = tuple(LoraChoice(name=name) for name in parameters.get("loras", ()))
    request = Generate(**({"request_id": "r", "prompt": "a red circle"} | parameters))
    made_for = LoraSchedules(named or {}, merged or {})
    return check(request, model, limits or Limits(), drawn_seed=0, loras=loaded, made_for=made_for)


def schedule_of(request: CheckedRequest) -> tuple[int, tuple[float, ...] | None, float | None, float]:
    return request.steps, request.sigmas, request.mu, request.guidance


def test_sigmas_of_a_request_are_its_steps() -> None:
    assert schedule_of(checked(sigmas=(1.0, 0.6, 0.2), mu=0.0)) == (3, (1.0, 0.6, 0.2), 0.0, 0.0)
    assert schedule_of(checked(sigmas=(1, 0.6, 0.2, 0), steps=3)) == (3, (1.0, 0.6, 0.2), None, 0.0)
    assert schedule_of(checked(sigmas=())) == (8, None, None, 0.0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sigmas": (0.5, 1.0)}, "sigmas must be numbers that fall from at most 1 to above 0, by 0.000001 at least, "),
        ({"sigmas": (0.0,)}, "got [0.0]"),
        ({"sigmas": (1.5, 1.0)}, "got [1.5, 1.0]"),
        ({"sigmas": (1.0, math.nan)}, "got [1.0, nan]"),
        ({"sigmas": tuple(1 - step / 300 for step in range(201))}, "at most 200 numbers, one a step, got 201"),
        ({"sigmas": (1.0, 0.5), "steps": 8}, "steps 8 contradicts sigmas, which are 2"),
        ({"sigmas": (1.0, 0.5), "pictures": ("image",), "strength_steps": "full"}, "strength_steps must be partial"),
    ],
)
def test_sigmas_that_cannot_be_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        checked(**parameters)
    assert message in caught.value.message
    assert caught.value.parameter == next(name for name in ("strength_steps", "steps", "sigmas") if name in parameters)
    assert len(caught.value.message) < 250


@given(st.lists(st.floats(), max_size=5).map(tuple))
def test_any_sigmas_are_a_schedule_or_refused(sigmas: tuple[float, ...]) -> None:
    with nullcontext() if are_sigmas(without_last_zero(sigmas)) or not sigmas else pytest.raises(ArgumentError):
        request = checked(sigmas=sigmas)
        assert request.sigmas == (sigmas[: request.steps] or None)


def test_a_strength_takes_the_last_sigmas() -> None:
    half = checked(sigmas=(1.0, 0.7, 0.4, 0.1), pictures=("image",), strength=0.5)
    assert (half.steps, half.skipped_steps, half.asked_steps, half.sigmas) == (2, 2, 4, (1.0, 0.7, 0.4, 0.1))
    (job,) = make_plan(half, TURBO, lambda _: Prompt((1,) * 40, cut=False), count(), {}).jobs
    assert (job.steps, job.skipped_steps, job.sigmas) == (2, 2, half.sigmas)


def test_a_request_with_a_lora_gets_the_schedule_that_it_was_made_for() -> None:
    fast = {"fast": FOUR}
    drawn = checked(RAW, fast, loras=["fast"])
    assert schedule_of(drawn) == (4, FOUR.sigmas, 0.0, 0.0)
    said = "drawn with {}, for which LoRA fast was made; give {} to decide otherwise"
    assert drawn.warnings == (said.format(SAID, STEPS), said.format("guidance 0", GUIDANCE))
    assert checked(TURBO, fast, loras=["fast"]).warnings == (said.format(SAID, STEPS),)  # which has no guidance anyhow
    assert schedule_of(checked(RAW, fast)) == schedule_of(checked(RAW))
    assert schedule_of(checked(RAW, {"off": FOUR}, loras=["off", "plain"])) == schedule_of(checked(RAW))


@pytest.mark.parametrize("own", [{"steps": 6}, {"mu": 0.5}, {"sigmas": (1.0, 0.5)}])
def test_what_a_request_says_goes_before_all_of_a_loras_schedule(own: dict[str, Any]) -> None:
    plain, drawn = checked(RAW, **own), checked(RAW, {"fast": FOUR}, loras=["fast"], **own)
    assert schedule_of(drawn) == (*schedule_of(plain)[:3], 0.0)
    assert schedule_of(checked(RAW, {"fast": FOUR}, loras=["fast"], guidance=2.0)) == (4, FOUR.sigmas, 0.0, 2.0)


def test_a_lora_of_strength_0_says_nothing() -> None:
    request = Generate(request_id="r", prompt="a", loras=(LoraChoice(name="fast", strength=0.0),))
    made_for = LoraSchedules({"fast": FOUR})
    assert check(request, RAW, Limits(), drawn_seed=0, loras={"fast": 1.0}, made_for=made_for).steps == 52


def test_a_merged_lora_is_in_every_image() -> None:
    drawn = checked(RAW, merged={"fast.safetensors": LoraSchedule(steps=6)})
    assert schedule_of(drawn) == (6, None, None, 3.5)
    assert "6 steps, for which merged LoRA fast.safetensors was made" in drawn.warnings[0]


def test_loras_that_agree_are_one_and_those_that_do_not_are_none() -> None:
    both = ["one", "two"]
    agreed = checked(RAW, {"one": FOUR, "two": replace(FOUR, guidance=None)}, loras=both)
    assert schedule_of(agreed) == (4, FOUR.sigmas, 0.0, 0.0)
    assert f"{SAID}, for which LoRA one and LoRA two were made" in agreed.warnings[0]
    parted = checked(RAW, {"one": FOUR, "two": LoraSchedule(steps=8, guidance=1.0)}, loras=both)
    assert schedule_of(parted) == schedule_of(checked(RAW))
    said = "LoRA one and LoRA two were made for different {}, of which none were taken: give the request its own"
    assert parted.warnings == (said.format(STEPS), said.format(GUIDANCE))


@pytest.mark.parametrize(
    ("schedule", "parameters", "said"),
    [
        (LoraSchedule(steps=300), {}, "here images have at most 200 steps"),
        (LoraSchedule(guidance=50.0), {}, "here guidance is at most 20"),
        (FOUR, {"pictures": ("image",), "strength_steps": "full"}, "strength_steps is full, and sigmas are as many as"),
    ],
)
def test_what_cannot_be_is_passed_over_and_said(schedule: LoraSchedule, parameters: dict[str, Any], said: str) -> None:
    drawn = checked(TURBO, {"odd": schedule}, loras=["odd"], **parameters)
    assert (drawn.asked_steps, drawn.sigmas, drawn.guidance) == (8, None, 0.0)
    assert any(each.startswith("not drawn with ") and said in each for each in drawn.warnings)


def test_previews_of_a_client_that_expected_more_steps_still_come() -> None:
    """HTTP's partial_images are counted before a LoRA has a say."""
    of_lora = {"named": {"fast": FOUR}, "loras": ["fast"]}
    assert checked(RAW, preview_every=13, **of_lora).preview_every == 2
    assert checked(RAW, preview_every=3, **of_lora).preview_every == 3
    assert checked(RAW, preview_every=13, steps=4, **of_lora).preview_every == 13
